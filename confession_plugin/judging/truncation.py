"""Cutting a case to fit into the judge's context: the middle of the transcript gives way, the report never."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from confession_plugin.judging.client import ChatClient, Reply, Server
from confession_plugin.judging.refusals import Completion, TooLong, token_counts
from confession_plugin.judging.rubric import Message, Rubric

logger = logging.getLogger(__name__)

#: Sections that give way, in this order.
_CUTTABLE = ("transcript", "answer", "calibration", "prompt", "reference")
_LEAST = 600
"""Characters a section keeps: half of them at each end."""
_MOST_CUTS = 12
"""Times one case is shortened.  A refusal is quick: the server counts tokens and generates nothing."""
_MOST_CHARACTERS_PER_TOKEN = 6.5
"""No tokenizer packs more into its tokens over a page: a server that counts fewer did not read all."""
_CUT_CHARACTERS_PER_TOKEN = 3.5
_A_PAGE = 4000


async def complete_truncating(
    client: ChatClient,
    rubric: Rubric,
    sections: Mapping[str, str],
    note: str = "",
    response_format: Mapping[str, Any] | None = None,
    avoid: Sequence[Server] = (),
) -> Reply:
    """A reply, from as much of the case as fits.

    There is no way to count another model's tokens here, so the whole case is sent first and the server's refusal says
    how much to cut.  A server that silently drops what does not fit says so by its count of tokens.

    Raises:
        Unscored: ``context_too_long`` when even the shortest form does not fit, or any other failure.
    """
    fitting, dropped, droppable = dict(sections), 0, cuttable(sections)
    for cut in range(_MOST_CUTS + 1):
        messages = rubric.messages(fitting, note)
        last = dropped >= droppable or cut == _MOST_CUTS
        try:
            reply = await client.complete(messages, response_format, avoid)
            unread = unread_characters(messages, reply.completion.prompt_tokens)
            excess = unread or crowding_characters(messages, reply.completion, client.max_tokens)
            if excess is None or last:
                return reply
            if unread is not None:
                _notice(reply.server, unread, messages)
        except TooLong as error:
            if last:
                raise
            excess = excess_characters(error.refusal, messages, client.max_tokens)
        left = droppable - dropped
        if excess is None:
            excess = left // 2 if left > 2000 else left
        dropped = min(dropped + excess, droppable)
        fitting = shorten(sections, dropped)
    raise AssertionError("the last round returns or raises")


def _notice(server: Server, excess: int, messages: Sequence[Message]) -> None:
    server.dropped += 1
    if server.dropped == 1:
        logger.warning(
            "%s answers although it read only a part of the message: some %d of %d characters are more than its "
            "context. Such cases are cut with a visible mark and judged again; give the server a longer context",
            server.name,
            excess,
            _size(messages),
        )


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
    counts = token_counts(refusal)
    if counts is None:
        return None
    return _excess(_size(messages), *counts, max_tokens)


def crowding_characters(messages: Sequence[Message], completion: Completion, max_tokens: int) -> int | None:
    """How many characters too many left the reply no room; None when its own budget ended it, or nothing did.

    Some servers take messages that just fit, and stop where the context is full.
    """
    used, written = completion.prompt_tokens, completion.completion_tokens
    if completion.finish_reason != "length" or not used or not 0 < written < 0.9 * max_tokens:
        return None
    return _excess(_size(messages), used + written, used, max_tokens)


def _excess(size: int, limit: int, used: int, max_tokens: int) -> int:
    # Where the budget of the verdict alone fills the context, the server may still give what is left.
    room = limit - max_tokens if limit > max_tokens else limit // 4
    return max(size - int(0.95 * size * room / used), 1)


def unread_characters(messages: Sequence[Message], prompt_tokens: int) -> int | None:
    """How many characters a server has not read, judging by the tokens it counted; None when it read all."""
    size = _size(messages)
    if not prompt_tokens or size < _A_PAGE or size / prompt_tokens < _MOST_CHARACTERS_PER_TOKEN:
        return None
    return max(size - int(_CUT_CHARACTERS_PER_TOKEN * prompt_tokens), 1)


def _size(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)
