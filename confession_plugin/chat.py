"""From an answer to its confession, as token ids.

What was generated is never re-rendered or re-tokenised (templates drop earlier reasoning, and tokens may merge): only
the text between the answer and the confession is rendered (see `chat_template`), and what of it the answer has
written already is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from confession_plugin.chat_template import TurnChange, continued_ids, turn_change
from confession_plugin.config import PREFIX
from confession_plugin.errors import ConfigError
from confession_plugin.reasoning import open_mark, special_ids, text_with_specials, trailing_marks
from confession_plugin.records import Request

__all__ = ["TurnChange", "describe_turn_change", "plain_turn_change", "request_token_ids", "turn_change"]

_PROMPT_END = 64
"""Tokens at the end of a prompt that tell how its answer was opened."""


def request_token_ids(
    tokenizer: Any, request: Request, answered: Sequence[int], *, chat: bool, answer_start: int | None = None
) -> list[int]:
    """Token ids that lead from the end of an answer to the start of its confession.

    Args:
        tokenizer: the host's tokenizer or processor.
        request: the message to append; a system message goes in a user turn where the template knows no late one.
        answered: token ids of prompt and answer.
        chat: render by the chat template; False for models and runs without one.
        answer_start: where in `answered` the (last) answer begins.  With it the prompt's mode of thinking is carried
            over exactly; without it only an empty block of reasoning at the start of the answer is.

    Returns:
        Ids of: what is left of the answer's turn ending, the request's turn, the opening of the next turn.  An end
        token stands there once: an answer that stopped by itself brings its own, a truncated one gets the template's.
    """
    if not chat:
        start = answer_start or 0
        prompt = text_with_specials(tokenizer, answered[max(0, start - _PROMPT_END) : start])
        return continued_ids(tokenizer, plain_turn_change(request) + trailing_marks(prompt))
    change = turn_change(tokenizer, "user" if request.role == "user" else "auto")
    change = change.in_the_mode_of(_prompt_end(tokenizer, change, answered, answer_start))
    ids = continued_ids(tokenizer, change.text(request.text))
    return ids[_written_already(tokenizer, change, ids, answered) :]


def plain_turn_change(request: Request) -> str:
    """The turn change for models without a chat template."""
    return f"\n\n[{request.role}]\n{request.text.strip()}\n\n[assistant]\n"


def describe_turn_change(
    tokenizer: Any,
    request: Request,
    *,
    chat: bool,
    budget: int,
    role: Literal["auto", "system", "user"] = "auto",
) -> str:
    """The start-up line: ``request: user turn, 412 of 1024 tokens; the confession opens with <think>``.

    Args:
        tokenizer: the host's tokenizer or processor.
        request: the message to append.
        chat: render by the chat template.
        budget: ``--confession.max_request_tokens``.
        role: ``--confession.request_role``.

    Raises:
        ConfigError: the template cannot place the request, or it takes more tokens than the budget.
    """
    change = turn_change(tokenizer, "user" if request.role == "user" else role) if chat else None
    count = len(request_token_ids(tokenizer, request, (), chat=chat))
    if count > budget:
        raise ConfigError(
            f"{PREFIX}max_request_tokens: the request takes {count} tokens, not {budget}; "
            f"give {count} or a shorter request ({PREFIX}request compact, {PREFIX}request_path)"
        )
    if change is None:
        return f"request: plain text, {count} of {budget} tokens"
    return f"request: {change.role} turn, {count} of {budget} tokens; the confession opens {_opening(change)}"


def _opening(change: TurnChange) -> str:
    if change.opens_reasoning:
        return f"with {change.opens_reasoning}"
    marks = "".join(trailing_marks(change.after).split())
    return f"with {marks}: no thinking" if marks else "without a mark of reasoning"


def _written_already(tokenizer: Any, change: TurnChange, ids: Sequence[int], answered: Sequence[int]) -> int:
    """How many of the first `ids` the answer already ends with, or has made needless by its own end token."""
    if not answered:
        return 0
    closing = continued_ids(tokenizer, change.closing)
    marks = special_ids(tokenizer) | change.end_ids
    for length in range(min(len(ids), len(answered), len(closing) + 16), 0, -1):
        same = list(answered[-length:]) == list(ids[:length])
        # Text that happens to end like the template's own is text: only tokens of the template count.
        if same and (not marks.isdisjoint(ids[:length]) or 0 < len(closing) <= length):
            return length
    ended = answered[-1] in change.end_ids and list(ids[: len(closing)]) == closing
    return len(closing) if ended else 0


def _prompt_end(tokenizer: Any, change: TurnChange, answered: Sequence[int], answer_start: int | None) -> str:
    """The end of the last prompt, as text with its special tokens."""
    if answer_start is not None:
        return text_with_specials(tokenizer, answered[max(0, answer_start - _PROMPT_END) : answer_start])
    head, opening, answer = text_with_specials(tokenizer, answered).rpartition(change.opening)
    for mode in (change, *change.modes):
        block = mode.after.removeprefix(change.opening)
        if opening and block.strip() and open_mark(block) is None and answer.startswith(block):
            return head + opening + block
    return ""
