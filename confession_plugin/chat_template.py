"""How a chat template leads from an answer to a confession: found once for each tokenizer.

A conversation of stand-in words goes through the model's own template, and the text around the stand-in request is
what a real one gets too.  So templates that squeeze, escape or cut what people write do no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

from confession_plugin.config import PREFIX
from confession_plugin.errors import ConfigError
from confession_plugin.reasoning import open_mark, special_ids, text_tokenizer, text_with_specials, trailing_marks
from confession_plugin.records import Role

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

_known: WeakKeyDictionary[Any, dict[tuple[str, str], TurnChange]] = WeakKeyDictionary()


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

    @property
    def opening(self) -> str:
        """`after` without marks of reasoning at its end."""
        return without_marks(self.after)

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
        ended = without_marks(prompt)
        if not self.opening or not ended.endswith(self.opening):
            return self
        return replace(self, after=self.opening + prompt[len(ended) :])


def turn_change(tokenizer: Any, role: Literal["auto", "system", "user"] = "auto") -> TurnChange:
    """How the tokenizer's chat template leads from an answer to a confession; computed once for each tokenizer.

    Args:
        tokenizer: the host's tokenizer or processor (anything with ``apply_chat_template``).
        role: auto takes a system turn where the template really knows one after an answer, else a user turn.

    Raises:
        ConfigError: the template places the request in no such turn; one line with the flag that helps.
    """
    known = _known.setdefault(tokenizer, {})
    key = (repr(getattr(tokenizer, "chat_template", None)), role)
    if key not in known:
        found = _find(tokenizer, role)
        _check_control_tokens(tokenizer, found)
        known[key] = found
    return known[key]


def without_marks(text: str) -> str:
    """The text without the marks of reasoning, and the white space, that it ends with."""
    return text[: len(text) - len(trailing_marks(text))].rstrip()


def continued_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that continues another: without the blank that some tokenizers put before a text."""
    anchor, both = _ids(tokenizer, _ANSWER), _ids(tokenizer, _ANSWER + text)
    return both[len(anchor) :] if both[: len(anchor)] == anchor else _ids(tokenizer, text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: Any = tokenizer(text=text, add_special_tokens=False)["input_ids"]
    # The processor of a vision-language model answers with a batch of one, also to text alone.
    return list(ids[0] if ids and isinstance(ids[0], list) else ids)


def _name(tokenizer: Any) -> str:
    return str(getattr(text_tokenizer(tokenizer), "name_or_path", "") or "the tokenizer")


# ── finding it ──


@dataclass(frozen=True)
class _Placed:
    """The stand-in conversation, cut at its stand-ins."""

    lead: str
    before: str
    after: str


def _find(tokenizer: Any, role: str) -> TurnChange:
    for parts in (False, True):
        conversation = _StandIns(tokenizer, parts)
        if conversation.user is not None:
            break
    else:
        raise ConfigError(
            f"{_name(tokenizer)}: its chat template places no message after an answer; "
            f"use {PREFIX}request_format plain, or a template that does"
        )
    system = conversation.system
    if role == "system" and system is None:
        raise ConfigError(
            f"{PREFIX}request_role system: the chat template of {_name(tokenizer)} knows no system turn after an "
            f"answer; use {PREFIX}request_role user"
        )
    if system is not None and role != "user":
        return conversation.turn_change("system", system)
    return conversation.turn_change("user", conversation.user)


class _StandIns:
    """The stand-in conversation in one template.

    Args:
        tokenizer: the host's tokenizer or processor.
        parts: give each message's content in parts, as templates of vision-language models want it.
    """

    def __init__(self, tokenizer: Any, parts: bool) -> None:
        self.tokenizer = tokenizer
        self.parts = parts
        self.user = self._place("user")

    @cached_property
    def system(self) -> _Placed | None:
        """A system turn after an answer, if the template knows one and does not merely print what it is given.

        It knows one if the turn has a marker of its own (another than an unknown role's, and than none), leads to the
        confession as a user's turn does, changes nothing before the answer and brings no prompt of the template's own.
        And an answer that ends by opening the user's turn, for want of an ending of its own, gets the user's turn.
        """
        user, system, unknown = self.user, self._place("system"), self._place("standinrole")
        if user is None or system is None:
            return None
        known = (
            (system.lead, system.after) == (user.lead, user.after)
            and system.before not in (user.before, unknown.before if unknown else "")
            and self.closing != ""
            and system.before[len(self.closing) :].strip() != ""
            and len(system.before) <= len(user.before) + _LONGER
        )
        return system if known else None

    @cached_property
    def ending(self) -> str:
        """What the template writes behind the last answer of a conversation, to its end token and no further."""
        text = self._rendered(add_generation_prompt=False).rpartition(_ANSWER)[2].rstrip()
        # Some templates go on with the token that every conversation, or every turn, begins with.
        lead = self.user.lead if self.user else ""
        first = self._first_special(lead)
        start = "" if first is None else text_with_specials(self.tokenizer, [first])
        return text.removesuffix(start).rstrip() if lead.startswith(start) else text

    @cached_property
    def closing(self) -> str:
        """What closes an answer's turn before another turn, up to its last end token."""
        text, system = self._closing_before_user(), self._place("system")
        # What stands there before a user's turn only is the opening of that turn.
        return text if system is None or system.before.startswith(text) else ""

    def _closing_before_user(self) -> str:
        # Most templates close the last answer of a conversation as any other.  Some use another token there, or none:
        # then the first special token is the one if it is the tokenizer's own, or closes the request's turn too.
        before, after = (self.user.before, self.user.after) if self.user else ("", "")
        if self.ending and before.startswith(self.ending):
            return self.ending
        first, ends = self._first_special(before), self._specials(self.ending)
        if first is None:
            return ""
        closes_request = first == self._first_special(after)
        if first not in ends | {_eos_id(self.tokenizer)} and not (closes_request and ends):
            return ""
        head, token, _ = before.partition(text_with_specials(self.tokenizer, [first]))
        return head + token

    def turn_change(self, role: Role, placed: _Placed) -> TurnChange:
        """The turn change with the request where it was placed."""
        ends = self._specials(self.ending + self.closing) | _end_ids(self.tokenizer)
        change = TurnChange(role, self.closing, placed.before[len(self.closing) :], placed.after, ends)
        others = (self._place(role, **switch) for switch in _MODES)
        modes = [
            replace(change, before=other.before[len(self.closing) :], after=other.after)
            for other in others
            if other is not None and other.before.startswith(self.closing) and other.after != placed.after
        ]
        return replace(change, modes=tuple(dict.fromkeys(modes)))

    def _place(self, role: str, **switch: bool) -> _Placed | None:
        """Where the template puts the request, or None where it refuses, hoists, drops or repeats it."""
        rendered = self._rendered(role, add_generation_prompt=True, **switch)
        lead, found, between = rendered.rpartition(_ANSWER)
        if not found or between.count(_REQUEST) != 1:
            return None
        before, _, after = between.partition(_REQUEST)
        return _Placed(lead, before, after)

    def _rendered(self, role: str = "", **options: bool) -> str:
        """The conversation as text, empty where the template refuses it."""
        messages = [("user", _QUESTION), ("assistant", _ANSWER), *([(role, _REQUEST)] if role else [])]
        conversation = [
            {"role": name, "content": [{"type": "text", "text": text}] if self.parts else text}
            for name, text in messages
        ]
        try:
            return str(self.tokenizer.apply_chat_template(conversation, tokenize=False, **options))
        except Exception as error:  # jinja's TemplateError, or whatever the template raises on the role
            logger.debug("chat template refused a late %s message: %s", role, error)
            return ""

    def _first_special(self, text: str) -> int | None:
        special = special_ids(self.tokenizer)
        return next((index for index in continued_ids(self.tokenizer, text) if index in special), None)

    def _specials(self, text: str) -> frozenset[int]:
        return frozenset(continued_ids(self.tokenizer, text)) & special_ids(self.tokenizer)


def _check_control_tokens(tokenizer: Any, change: TurnChange) -> None:
    """Refuses tokenizers that read the template's control tokens as plain text, as the Mistral backend does."""
    text = change.text(_REQUEST)
    written = [token for token in text_tokenizer(tokenizer).all_special_tokens if token in text]
    if written and special_ids(tokenizer).isdisjoint(continued_ids(tokenizer, text)):
        raise ConfigError(
            f"{_name(tokenizer)}: its tokenizer reads {written[0]} of its own chat template as plain text; "
            f"load one that does not (a tokenizer.json), or use {PREFIX}request_format plain"
        )


def _eos_id(tokenizer: Any) -> int | None:
    found: int | None = text_tokenizer(tokenizer).eos_token_id
    return found


def _end_ids(tokenizer: Any) -> frozenset[int]:
    """The tokenizer's end token, its padding (a base model's end token, often), and the model's own end tokens.

    The last are read from the model's generation config where that lies on this machine.
    """
    from transformers import GenerationConfig

    pad: int | None = text_tokenizer(tokenizer).pad_token_id
    found = frozenset(index for index in (_eos_id(tokenizer), pad) if index is not None)
    try:
        named = GenerationConfig.from_pretrained(_name(tokenizer), local_files_only=True).eos_token_id
    except (OSError, ValueError):
        return found
    return found | frozenset(named if isinstance(named, list) else () if named is None else (named,))
