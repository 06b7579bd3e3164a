"""From an answer to its confession: the turn change, as token ids.

What was generated is never re-rendered or re-tokenised (templates drop earlier reasoning, and tokens may merge).  Only
the text between the answer and the confession is rendered, once for each tokenizer: a conversation of stand-in words
goes through the model's own chat template, and the text around the stand-in request is what a real one gets too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

from confession_plugin.config import PREFIX
from confession_plugin.errors import ConfigError
from confession_plugin.reasoning import open_mark, special_ids, text_with_specials, trailing_marks
from confession_plugin.records import Request, Role

logger = logging.getLogger(__name__)

# One plain word each: no template trims, escapes, squeezes or splits it.
_QUESTION = "StandInQuestion"
_ANSWER = "StandInAnswer"
_REQUEST = "StandInRequest"

# Switches of published templates: a prompt may have been made with one of them.
_MODES: tuple[Mapping[str, bool], ...] = tuple(
    {name: value} for name in ("enable_thinking", "thinking") for value in (False, True)
)
_LONGER = 40
"""Characters a system turn's markup may be longer than a user turn's; more is a prompt of the template's own."""
_PROMPT_END = 64
"""Tokens at the end of a prompt that tell how its answer was opened."""

_changes: WeakKeyDictionary[Any, dict[tuple[Any, str], TurnChange]] = WeakKeyDictionary()


@dataclass(frozen=True)
class TurnChange:
    """The template's own text between an answer and its confession, with a place for the request."""

    role: Role
    """The turn the request goes in."""
    closing: str
    """What closes the answer's turn; an answer that ended by itself has its end token already."""
    before: str
    """From there to the request."""
    after: str
    """From the request to the first token of the confession."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end an answer: the tokenizer's, the model's, and those the template writes."""
    modes: tuple[TurnChange, ...] = ()
    """The same in the template's other modes of thinking."""

    @property
    def opens_reasoning(self) -> str | None:
        """The mark of the block of reasoning that the confession starts in, if it does."""
        return open_mark(self.after)

    def text(self, request: str) -> str:
        """The whole text; `request` is put in as it is."""
        return f"{self.closing}{self.before}{request.strip()}{self.after}"

    def in_the_mode_of(self, prompt: str) -> TurnChange:
        """The turn change for an answer whose prompt ended with this text: thinking stays open, closed or as it was.

        A prompt that ends with marks of reasoning (an open block, an empty one) hands them on to the confession.
        """
        exact = [mode for mode in (self, *self.modes) if prompt.endswith(mode.after)]
        if exact:
            return max(exact, key=lambda mode: len(mode.after))
        opening = _without_marks(self.after)
        ended = _without_marks(prompt)
        if not opening or not ended.endswith(opening):
            return self
        return replace(self, after=opening + prompt[len(ended) :])


def turn_change(tokenizer: Any, role: Literal["auto", "system", "user"] = "auto") -> TurnChange:
    """How the tokenizer's chat template leads from an answer to a confession; computed once for each tokenizer.

    Args:
        tokenizer: the host's tokenizer or processor (anything with ``apply_chat_template``).
        role: auto takes a system turn where the template really knows one after an answer, else a user turn.

    Raises:
        ConfigError: the template places the request in no such turn; one line with the flag that helps.
    """
    known = _changes.setdefault(tokenizer, {})
    key = (_template(tokenizer), role)
    if key not in known:
        known[key] = _find_turn_change(tokenizer, role)
    return known[key]


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
        return _encode(tokenizer, plain_turn_change(request))
    change = turn_change(tokenizer, "user" if request.role == "user" else "auto")
    change = change.in_the_mode_of(_prompt_end(tokenizer, change, answered, answer_start))
    ids = _encode(tokenizer, change.text(request.text))
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
    ids = request_token_ids(tokenizer, request, (), chat=chat)
    if len(ids) > budget:
        raise ConfigError(
            f"{PREFIX}max_request_tokens: the request takes {len(ids)} tokens, not {budget}; "
            f"give {len(ids)} or a shorter {PREFIX}request_path"
        )
    if not chat:
        return f"request: plain text, {len(ids)} of {budget} tokens"
    change = turn_change(tokenizer, "user" if request.role == "user" else role)
    marks = trailing_marks(change.after)
    if change.opens_reasoning:
        opening = f"opens with {change.opens_reasoning}"
    else:
        opening = f"opens with {''.join(marks.split())}: no thinking" if marks else "opens without a mark of reasoning"
    return f"request: {change.role} turn, {len(ids)} of {budget} tokens; the confession {opening}"


# ── finding the turn change ──


@dataclass(frozen=True)
class _Placed:
    """The stand-in conversation, cut at its stand-ins."""

    lead: str
    before: str
    after: str


def _find_turn_change(tokenizer: Any, role: str) -> TurnChange:
    for parts in (False, True):  # templates of vision-language models want a message's content in parts
        user = _place(tokenizer, "user", parts)
        if user is not None:
            break
    else:
        raise ConfigError(
            f"{_name(tokenizer)}: its chat template places no message after an answer; "
            f"use {PREFIX}request_format plain, or a template that does"
        )
    system = _place(tokenizer, "system", parts)
    closing = _closing(tokenizer, user, parts)
    if system is not None and not system.before.startswith(closing):
        closing = ""  # what an answer ends with before a user's turn only is the opening of that turn
    known = system is not None and _knows_system_turns(tokenizer, parts, system, user, closing)
    if role == "system" and not known:
        raise ConfigError(
            f"{PREFIX}request_role system: the chat template of {_name(tokenizer)} knows no system turn after an "
            f"answer; use {PREFIX}request_role user"
        )
    if system is not None and known and role != "user":
        return _turn_change(tokenizer, "system", system, closing, parts)
    return _turn_change(tokenizer, "user", user, closing, parts)


def _turn_change(tokenizer: Any, role: Role, placed: _Placed, closing: str, parts: bool) -> TurnChange:
    ends = _specials_of(tokenizer, _ending(tokenizer, parts, placed) + closing) | _end_ids(tokenizer)
    change = TurnChange(role, closing, placed.before[len(closing) :], placed.after, ends)
    modes = []
    for switch in _MODES:
        other = _place(tokenizer, role, parts, **switch)
        if other is not None and other.before == placed.before and other.after != placed.after:
            modes.append(replace(change, after=other.after))
    return replace(change, modes=tuple(dict.fromkeys(modes)))


def _place(tokenizer: Any, role: str, parts: bool, **switch: bool) -> _Placed | None:
    """Where the template puts the request, or None where it refuses, hoists, drops or repeats it."""
    rendered = _rendered(tokenizer, parts, role, add_generation_prompt=True, **switch)
    lead, found, between = rendered.rpartition(_ANSWER)
    if not found or between.count(_REQUEST) != 1:
        return None
    before, _, after = between.partition(_REQUEST)
    return _Placed(lead, before, after)


def _rendered(tokenizer: Any, parts: bool, role: str = "", **options: bool) -> str:
    """The stand-in conversation as text, empty where the template refuses it."""
    messages = [("user", _QUESTION), ("assistant", _ANSWER), *([(role, _REQUEST)] if role else [])]
    conversation = [
        {"role": name, "content": [{"type": "text", "text": text}] if parts else text} for name, text in messages
    ]
    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))
    except Exception as error:  # jinja's TemplateError, or whatever the template raises on the role
        logger.debug("chat template refused a late %s message: %s", role, error)
        return ""


def _knows_system_turns(tokenizer: Any, parts: bool, system: _Placed, user: _Placed, closing: str) -> bool:
    """Does the template know a system turn after an answer, or merely print what it is given?

    It knows one if the turn has a marker of its own (another than an unknown role's, and than none), leads to the
    confession as a user's turn does, changes nothing before the answer and brings no prompt of the template's own.
    And an answer that ends by opening the user's turn, for want of an ending of its own, gets the user's turn.
    """
    unknown = _place(tokenizer, "standinrole", parts)
    return (
        (system.lead, system.after) == (user.lead, user.after)
        and system.before not in (user.before, unknown.before if unknown else "")
        and closing != ""
        and system.before[len(closing) :].strip() != ""
        and len(system.before) <= len(user.before) + _LONGER
    )


def _ending(tokenizer: Any, parts: bool, placed: _Placed) -> str:
    """What the template writes behind the last answer of a conversation, to its end token and no further."""
    text = _rendered(tokenizer, parts, add_generation_prompt=False).rpartition(_ANSWER)[2].rstrip()
    # Some templates go on with the token that every conversation, or every turn, begins with.
    first = next((index for index in _encode(tokenizer, placed.lead) if index in special_ids(tokenizer)), None)
    start = "" if first is None else text_with_specials(tokenizer, [first])
    return text.removesuffix(start).rstrip() if placed.lead.startswith(start) else text


def _closing(tokenizer: Any, user: _Placed, parts: bool) -> str:
    """The part of ``user.before`` that closes the answer's turn, up to its last end token.

    Most templates close the last answer of a conversation as any other.  Some use another token there, or none: then
    the first special token is the one if it is the tokenizer's own, or closes the request's turn too.
    """
    ending = _ending(tokenizer, parts, user)
    if ending and user.before.startswith(ending):
        return ending
    special, ends = special_ids(tokenizer), _specials_of(tokenizer, ending)
    first = next((index for index in _encode(tokenizer, user.before) if index in special), None)
    if first is None:
        return ""
    closes_request = first == next((index for index in _encode(tokenizer, user.after) if index in special), None)
    if first not in ends | {_eos_id(tokenizer)} and not (closes_request and ends):
        return ""
    head, token, _ = user.before.partition(text_with_specials(tokenizer, [first]))
    return head + token


def _eos_id(tokenizer: Any) -> int | None:
    found: int | None = getattr(tokenizer, "tokenizer", tokenizer).eos_token_id
    return found


def _end_ids(tokenizer: Any) -> frozenset[int]:
    """The tokenizer's end token, its padding (a base model's end token, often), and the model's own end tokens.

    The last are read from the model's generation config where that lies on this machine.
    """
    from transformers import GenerationConfig

    pad: int | None = getattr(tokenizer, "tokenizer", tokenizer).pad_token_id
    found = frozenset(index for index in (_eos_id(tokenizer), pad) if index is not None)
    try:
        named = GenerationConfig.from_pretrained(_name(tokenizer), local_files_only=True).eos_token_id
    except (OSError, ValueError):
        return found
    return found | frozenset(named if isinstance(named, list) else () if named is None else (named,))


# ── on token ids ──


def _written_already(tokenizer: Any, change: TurnChange, ids: Sequence[int], answered: Sequence[int]) -> int:
    """How many of the first `ids` the answer already ends with, or has made needless by its own end token."""
    if not answered:
        return 0
    closing = _encode(tokenizer, change.closing)
    marks = special_ids(tokenizer) | change.end_ids
    for length in range(min(len(ids), len(answered), len(closing) + 16), 0, -1):
        same = list(answered[-length:]) == list(ids[:length])
        # Text that happens to end like the template's own is text: only tokens of the template count.
        if same and (not marks.isdisjoint(ids[:length]) or 0 < len(closing) <= length):
            return length
    if answered[-1] in change.end_ids and list(ids[: len(closing)]) == closing:
        return len(closing)
    return 0


def _prompt_end(tokenizer: Any, change: TurnChange, answered: Sequence[int], answer_start: int | None) -> str:
    """The end of the last prompt, as text with its special tokens."""
    if answer_start is not None:
        return text_with_specials(tokenizer, answered[max(0, answer_start - _PROMPT_END) : answer_start])
    text = text_with_specials(tokenizer, answered)
    head, opening, answer = text.rpartition(_without_marks(change.after))
    for mode in (change, *change.modes):
        block = mode.after.removeprefix(_without_marks(change.after))
        if opening and block.strip() and open_mark(block) is None and answer.startswith(block):
            return head + opening + block
    return ""


def _without_marks(text: str) -> str:
    return text[: len(text) - len(trailing_marks(text))].rstrip()


def _specials_of(tokenizer: Any, text: str) -> frozenset[int]:
    return frozenset(_encode(tokenizer, text)) & special_ids(tokenizer)


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that continues another: without the blank that some tokenizers put before a text."""
    anchor, both = _ids(tokenizer, _ANSWER), _ids(tokenizer, _ANSWER + text)
    return both[len(anchor) :] if both[: len(anchor)] == anchor else _ids(tokenizer, text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: Any = tokenizer(text=text, add_special_tokens=False)["input_ids"]
    # The processor of a vision-language model answers with a batch of one, also to text alone.
    return list(ids[0] if ids and isinstance(ids[0], list) else ids)


def _template(tokenizer: Any) -> Any:
    template = getattr(tokenizer, "chat_template", None)
    return template if isinstance(template, str) else repr(template)


def _name(tokenizer: Any) -> str:
    return str(getattr(getattr(tokenizer, "tokenizer", tokenizer), "name_or_path", "") or "the tokenizer")
