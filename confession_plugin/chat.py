"""From a request to token ids: the turn change between an answer and its confession.

What was generated is never re-rendered or re-tokenised (templates drop earlier reasoning, and tokens may merge): only
the text *between* the answer and the confession is rendered, found by rendering a stand-in conversation through the
model's own chat template and cutting behind the stand-in answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from confession_plugin.records import Request, Role

logger = logging.getLogger(__name__)

# Plain words: no template trims, escapes or splits on them.
_QUESTION = "StandInQuestion"
_ANSWER = "StandInAnswer"


def request_token_ids(tokenizer: Any, request: Request, answered: Sequence[int], *, chat: bool) -> list[int]:
    """Token ids that lead from the end of an answer to the start of its confession.

    Args:
        tokenizer: the host's tokenizer or processor (anything with ``apply_chat_template``).
        request: the message to append.
        answered: token ids of prompt and answer; only its end is looked at.
        chat: render by the chat template; False for models and runs without one.

    Returns:
        Ids of: what is left of the answer's turn ending, the request's turn, the opening of the next turn.  When the
        answer stopped by itself its end-of-turn token is already there and is not repeated; a truncated answer gets
        the whole ending.
    """
    if not chat:
        return _encode(tokenizer, plain_turn_change(request))
    ids = _encode(tokenizer, turn_change(tokenizer, request))
    return ids[_overlap(answered, ids) :]


def turn_change(tokenizer: Any, request: Request) -> str:
    """The template's own text from the end of an answer to the start of the next assistant turn.

    Raises:
        ValueError: the template can place the request neither in a system nor in a user turn after an answer.
    """
    text = request.text.strip()
    roles: tuple[Role, ...] = ("system", "user") if request.role == "system" else ("user",)
    for role in roles:
        between = _render_between(tokenizer, role, text)
        if between is not None:
            if role != request.role:
                _say_fallback_once(str(getattr(tokenizer, "name_or_path", "the model")))
            return between
    raise ValueError("the chat template places no message after an answer; use --confession.request_format plain")


def plain_turn_change(request: Request) -> str:
    """The turn change for models without a chat template."""
    return f"\n\n[{request.role}]\n{request.text.strip()}\n\n[assistant]\n"


def _render_between(tokenizer: Any, role: Role, text: str) -> str | None:
    """Text between answer and confession, or None where the template refuses, hoists or drops the message."""
    messages = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
        {"role": role, "content": text},
    ]
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja's TemplateError, or whatever the template raises on the role
        logger.debug("chat template refused a late %s message: %s", role, error)
        return None
    _, found, between = rendered.rpartition(_ANSWER)
    return between if found and text in between else None


def _overlap(answered: Sequence[int], ids: Sequence[int]) -> int:
    """Length of the longest start of `ids` that the answer already ends with."""
    for length in range(min(len(ids), len(answered), 16), 0, -1):
        if list(answered[-length:]) == list(ids[:length]):
            return length
    return 0


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: Any = tokenizer(text=text, add_special_tokens=False)["input_ids"]
    # The processor of a vision-language model answers with a batch of one, also to text alone.
    return list(ids[0] if ids and isinstance(ids[0], list) else ids)


@lru_cache(maxsize=8)
def _say_fallback_once(model: str) -> None:
    logger.warning("the chat template of %s takes no late system message: the request goes in a user turn", model)
