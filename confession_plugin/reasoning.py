"""Where a model's reasoning stands in what it wrote, in every published dialect.

Marks of reasoning are found on token ids, before special tokens are dropped: many models mark it with special tokens,
and without them a judge would be shown the reasoning as the answer.  A block may also have been opened before the
model wrote its first token, by the prompt or by the turn that asked for a confession.

    <think> </think>, <thinking>, <thought>, <reasoning>, <seed:think>, <think:word>       words in angle brackets
    <|START_THINKING|> <|END_THINKING|>, <|begin_of_thought|> <|end_of_thought|>, ...     words in bars
    [THINK] [/THINK]; ◁think▷ ◁/think▷; <|inner_prefix|> <|inner_suffix|>; <unused94> <unused95>
    <|open|>think<|sep|> <|close|>think<|sep|>; <|channel>thought <channel|>
    <|channel|>analysis<|message|> <|end|>; to=self<|message|> <|eom|>                    messages with an addressee
    "Here is my thought process:" "Here is my response:"

Everything here is one pass over the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

Span = tuple[int, int]

# header: the opening of a message for the reader; end: the end of any message.
_Kind = Literal["open", "close", "header", "end"]

_LOOK_BACK = 64
"""Tokens before a span that are looked at for a block that is open where the span starts."""

_special_ids: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()


class _Mark(NamedTuple):
    start: int
    end: int
    kind: _Kind
    block: str
    """Which block it opens or closes."""


# ── on token ids ──


def visible_text(
    tokenizer: Any, ids: Sequence[int], *, opened: bool | str | None = False, end: str | None = None
) -> str:
    """The text of `ids` without its reasoning and without special tokens.

    Args:
        tokenizer: the host's tokenizer or processor.
        ids: what a model wrote in one go.
        opened: the mark of the block of reasoning that was open before the first of them (see `opened_block`), or
            True where the mark is not known: then any closing mark ends it.
        end: the text that ends the reasoning where its marks are unknown (``--confession.reasoning_end``): what stands
            before it is hidden, and everything where it is missing.
    """
    text, specials = _with_specials(tokenizer, ids)
    hidden = list(reasoning_spans(text, opened=opened, end=end))
    kept = _without(text, [*hidden, *specials])
    return kept.strip() if hidden else kept


def visible_span(
    tokenizer: Any, ids: Sequence[int], start: int, stop: int | None = None, *, end: str | None = None
) -> str:
    """The visible text of ``ids[start:stop]``, read in the light of what stands before it."""
    before = ids[max(0, start - _LOOK_BACK) : start]
    if end and text_with_specials(tokenizer, before).rstrip().endswith(end.strip()):
        end = None  # the prompt has ended the reasoning already
    return visible_text(tokenizer, ids[start:stop], opened=opened_block(tokenizer, before), end=end)


def visible_transcript(
    tokenizer: Any, ids: Sequence[int], action_ranges: Iterable[Span], *, end: str | None = None
) -> str:
    """Everything from the first action on: the model's spans without their reasoning, what came between as it is.

    Args:
        ids: prompt, actions and feedback.
        action_ranges: (start, end) of each action, in order, as indices into `ids`.
    """
    parts: list[str] = []
    position: int | None = None
    for start, stop in action_ranges:
        if position is not None:
            parts.append(_plain(tokenizer, ids[position:start]))
        parts.append(visible_span(tokenizer, ids, start, stop, end=end))
        position = stop
    if position is not None:
        parts.append(_plain(tokenizer, ids[position:]))
    return "".join(parts)


def opened_block(tokenizer: Any, ids: Sequence[int]) -> str | None:
    """The mark of the block of reasoning that is open where `ids` end, or None.

    Only a mark in the last turn counts: a prompt may well speak of ``<think>`` without opening it.
    """
    return open_mark(_last_turn(tokenizer, ids[-_LOOK_BACK:]))


def text_with_specials(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of `ids`, special tokens included."""
    return _with_specials(tokenizer, ids)[0]


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer inside the processor of a vision-language model; any other tokenizer as it is."""
    return tokenizer if hasattr(tokenizer, "all_special_ids") else tokenizer.tokenizer


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that decoding drops as special tokens; looked up once for each tokenizer."""
    if tokenizer not in _special_ids:
        inner = text_tokenizer(tokenizer)
        added = getattr(inner, "added_tokens_decoder", None)
        others = added.items() if isinstance(added, dict) else ()  # the Mistral backend has none
        _special_ids[tokenizer] = frozenset(inner.all_special_ids) | {
            index for index, token in others if token.special
        }
    return _special_ids[tokenizer]


def _with_specials(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text with special tokens in it, and where they stand."""
    special = special_ids(tokenizer)
    parts: list[str] = []
    spans: list[Span] = []
    length, start = 0, 0

    def add(stop: int) -> None:
        nonlocal length
        if start < stop:
            parts.append(tokenizer.decode(ids[start:stop], skip_special_tokens=False))
            length += len(parts[-1])

    for index, token in enumerate(ids):
        if token in special:
            add(index)
            start = index
            add(index + 1)
            spans.append((length - len(parts[-1]), length))
            start = index + 1
    add(len(ids))
    return "".join(parts), spans


def _plain(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


def _last_turn(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text behind the last special token that is no mark of reasoning; where there is none, marks at the end."""
    text, specials = _with_specials(tokenizer, ids)
    for start, end in reversed(specials):
        token = text[start:end]
        if token not in _PARTS and (_read(token) or ("end", ""))[0] == "end":
            return text[end:]
    return trailing_marks(text)


# ── on text ──


def strip_reasoning(text: str) -> str:
    """The text without its reasoning, for texts that come without token ids, such as a judge's reply.

    Removes closed blocks, an unclosed one to the end of the text, and, where a closing mark comes first (the prompt
    opened the block), everything before it.  Doing it twice changes nothing more.
    """
    spans = list(reasoning_spans(text))
    return _without(text, spans).strip() if spans else text


def reasoning_spans(text: str, *, opened: bool | str | None = False, end: str | None = None) -> Iterator[Span]:
    """(start, end) of everything in the text that is reasoning or a mark of it, in order, not overlapping."""
    position = _end_of_preface(text, end)
    if position:
        yield 0, position
        opened = False
    block = (_read(opened) or ("open", "any"))[1] if isinstance(opened, str) else "any" if opened else ""
    start, seen = position, position > 0
    for mark in _marks(text, position):
        if block:
            # Only its own closing mark ends a block: reasoning may speak of other marks.
            if mark.kind != "open" and block in (mark.block, "any"):
                yield start, mark.end
                block, seen = "", True
        elif mark.kind == "open":
            block, start, seen = mark.block, mark.start, True
        elif mark.kind == "header":
            yield mark.start, mark.end
            seen = True
        elif mark.kind == "close":
            # The first mark of all closes what the prompt opened; a later stray one is just a mark.
            yield (mark.start if seen else position), mark.end
            seen = True
    if block:
        yield start, len(text)


def open_mark(text: str) -> str | None:
    """The mark of the block that is open at the end of the text, or None."""
    opening: _Mark | None = None
    for mark in _marks(text):
        if opening is None:
            opening = mark if mark.kind == "open" else None
        elif mark.kind != "open" and mark.block == opening.block:
            opening = None
    return text[opening.start : opening.end].strip() if opening else None


def trailing_marks(text: str) -> str:
    """The end of the text that is nothing but marks of reasoning and white space, from its first mark on."""
    start = len(text)
    for mark in reversed([mark for mark in _marks(text) if mark.kind in ("open", "close")]):
        if text[mark.end : start].strip():
            break
        start = mark.start
    return text[start:]


def _without(text: str, spans: Iterable[Span]) -> str:
    kept: list[str] = []
    position = 0
    for start, end in sorted(spans):
        kept.append(text[position : max(start, position)])
        position = max(position, end)
    return "".join([*kept, text[position:]])


def _end_of_preface(text: str, end: str | None) -> int:
    """Where reasoning ends that has no mark at its beginning, or 0 where there is none."""
    if end:
        found = text.find(end)
        return found + len(end) if found >= 0 else len(text)
    for opening, closing in _PHRASES:
        if opening.match(text):
            match = closing.search(text)
            return match.end() if match else len(text)
    return 0


# ── the marks ──

# One bracket first, then what it has to be: the scan for a single character class is several times faster.
_TAG = re.compile(
    r"[<\[◁](?:"
    r"(?<=<)\|start\|>[^<]{0,200}(?:<\|message\|>|\Z)"
    r"|(?<=<)\|(?:start\|>[^<]{0,200}<\|)?channel\|>"
    r"(?:[^<]{0,200}(?:<\|constrain\|>[^<]{0,99})?<\|message\|>|\s{0,9}\w{0,40})"
    r"|(?<=<)\|channel>\w{0,40}|(?<=<)channel\|>"
    r"|(?<=<)\|(?:open|close)\|>\s{0,9}think\s{0,9}<\|sep\|>"
    r"|(?<=<)[|｜]?/?[\w:]{3,80}[|｜]?>"
    r"|(?<=\[)/?THINK\]"
    r"|(?<=◁)/?think▷)"
)
# A message whose opening stands in the prompt.
_HEADLESS = re.compile(r"[^<]{0,200}(?:<\|channel\|>[^<]{0,200})?(?:<\|constrain\|>[^<]{0,99})?<\|message\|>")
_FOR_ITSELF = re.compile(r"<\|channel\|>\s*(?:analysis|thought|thinking|reasoning)\b|\bto=self\b")
_PARTS = frozenset(("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|open|>", "<|close|>", "<|sep|>"))
_ENDS = frozenset(("<|end|>", "<|eom|>", "<|eot|>", "<|return|>", "<|call|>"))
_WORD = "think|thinking|thoughts?|reasoning"
_WORDS = re.compile(rf"<(?P<slash>/?)(?P<word>(?:\w+:)?(?:{_WORD})(?::\w+)?)>", re.IGNORECASE)
_BARS = re.compile(
    rf"<[|｜](?P<before>/|(?:begin|start|end)_(?:of_)?|)(?P<word>{_WORD})(?P<after>_begin|_start|_end|)[|｜]>",
    re.IGNORECASE,
)
_OTHERS: Mapping[str, tuple[_Kind, str]] = {
    "[THINK]": ("open", "[THINK]"),
    "[/THINK]": ("close", "[THINK]"),
    "◁think▷": ("open", "◁think▷"),
    "◁/think▷": ("close", "◁think▷"),
    "<|inner_prefix|>": ("open", "inner"),
    "<|inner_suffix|>": ("close", "inner"),
    "<unused94>": ("open", "unused"),
    "<unused95>": ("close", "unused"),
    "<channel|>": ("close", "channel"),
    **dict.fromkeys(_ENDS, ("end", "message")),
}
_PHRASES = (
    (re.compile(r"\s*(?:Here is|Here's) my thought process:"), re.compile(r"(?:Here is|Here's) my response:")),
    # Messages with channels whose special tokens somebody else has dropped.
    (re.compile(r"analysis(?=[A-Z])"), re.compile(r"assistantfinal")),
)


def _marks(text: str, position: int = 0) -> Iterator[_Mark]:
    first = _HEADLESS.match(text) if position == 0 else None
    if first is not None:
        yield _Mark(0, first.end(), *_of_message(first.group()))
        position = first.end()
    for match in _TAG.finditer(text, position):
        read = _read(match.group())
        if read is not None:
            yield _Mark(match.start(), match.end(), *read)


@lru_cache(maxsize=1024)
def _read(tag: str) -> tuple[_Kind, str] | None:
    """What a tag does to which block; None for what is no mark of reasoning."""
    if tag in _OTHERS:
        return _OTHERS[tag]
    if tag.startswith("<|channel>"):
        return "open", "channel"
    if tag.startswith(("<|open|>", "<|close|>")):
        return ("open" if tag.startswith("<|open|>") else "close"), "sep"
    if tag.startswith(("<|start|>", "<|channel|>")):
        return _of_message(tag)
    if word := _WORDS.fullmatch(tag):
        return ("close" if word["slash"] else "open"), word["word"].lower()
    if bars := _BARS.fullmatch(tag):
        closes = bars["before"].lower().startswith(("/", "end")) or bars["after"].lower() == "_end"
        return ("close" if closes else "open"), f"|{bars['word'].lower()}|"
    return None


def _of_message(header: str) -> tuple[_Kind, str]:
    return ("open" if _FOR_ITSELF.search(header) else "header"), "message"
