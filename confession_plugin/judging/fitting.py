"""Fitting a case into the judge's context: the middle of the transcript gives way, the report never."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from confession_plugin.errors import Unscored
from confession_plugin.judging.client import ChatClient, Reply
from confession_plugin.judging.rubric import Message, Rubric

#: Sections that give way, in this order.
_CUTTABLE = ("transcript", "answer", "calibration", "prompt", "reference")
_LEAST = 600
"""Characters a section keeps: half of them at each end."""
_MOST_CUTS = 12
"""Times one case is shortened.  A refusal is quick: the server counts tokens and generates nothing."""


async def complete_fitting(
    client: ChatClient,
    rubric: Rubric,
    sections: Mapping[str, str],
    note: str = "",
    response_format: Mapping[str, Any] | None = None,
) -> Reply:
    """A reply, from as much of the case as fits.

    There is no way to count another model's tokens here, so the whole case is sent first and the server's refusal says
    how much to cut.

    Raises:
        Unscored: ``context_too_long`` when even the shortest form does not fit, or any other failure.
    """
    fitting, dropped, droppable = dict(sections), 0, cuttable(sections)
    for cut in range(_MOST_CUTS + 1):
        messages = rubric.messages(fitting, note)
        try:
            return await client.complete(messages, response_format)
        except Unscored as error:
            if error.reason != "context_too_long" or dropped >= droppable or cut == _MOST_CUTS:
                raise
            excess = excess_characters(error.detail, messages, client.max_tokens)
        left = droppable - dropped
        if excess is None:
            excess = left // 2 if left > 2000 else left
        dropped = min(dropped + excess, droppable)
        fitting = shorten(sections, dropped)
    raise AssertionError("the last round returns or raises")


def cuttable(sections: Mapping[str, str]) -> int:
    """Characters that `shorten` can drop."""
    return sum(max(len(sections.get(name, "")) - _LEAST, 0) for name in _CUTTABLE)


def shorten(sections: Mapping[str, str], excess: int) -> dict[str, str]:
    """Drop `excess` characters, or as many as can be, with a visible mark at each cut.

    The middle of the transcript goes first, then that of the other sections; the report stays whole.
    """
    shorter = dict(sections)
    for name in _CUTTABLE:
        text = shorter.get(name, "")
        drop = min(excess, len(text) - _LEAST)
        if drop > 0:
            head = (len(text) - drop) // 2
            shorter[name] = f"{text[:head]}\n[... {drop} characters cut ...]\n{text[head + drop :]}"
            excess -= drop
    return shorter


def excess_characters(refusal: str, messages: Sequence[Message], max_tokens: int) -> int | None:
    """How many characters too many the messages have, judging by the server's refusal.

    None when it gives no exact count: vLLM, for one, stops counting soon after the limit ("at least ...").
    """
    size = sum(len(message["content"]) for message in messages)
    limit = re.search(r"maximum context length is (\d+)", refusal)
    used = re.search(r"(?:contains|resulted in|\() ?(\d+) (?:input tokens|tokens|in the messages)", refusal)
    if limit is None or used is None:
        return None
    room = int(limit[1]) - max_tokens
    return max(size - int(0.95 * size * room / max(int(used[1]), 1)), 1)
