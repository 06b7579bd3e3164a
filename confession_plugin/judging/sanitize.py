"""Text of strangers made fit for the judge's message: nothing in it is invisible, and no chat template obeys it.

`clean` never removes anything, so no two harmless parts can join into a control token.  It looks at the text as the
Unicode form NFKC and without joiners, because some tokenizers and models read it so.  Time is linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

# Control characters, bidirectional and zero-width marks, tag characters, lone surrogates: shown, not obeyed.  Kept:
# tab, newline, and the joiners that Persian, Indic scripts and emoji need.
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e0fff]+"
)
_MOST_SHOWN = 200
"""Odd characters shown by number in one text, so that a text full of them doesn't grow many times longer."""
# Looked for where a blank begins, and nowhere within it.
_LONG_BLANK = re.compile(r"\s(?<!\s\s)\s{199,}")
_JOINERS = "\u200c\u200d"

_WORDS = (
    "s|bos|eos|pad|unk|mask|cls|sep|sop|eop|eod|think|thinking|reasoning|system|user|assistant|role|human|bot|image|"
    r"audio|video|tool|tools|function|functions|invoke|pad\d+|unused\d+|reserved\d+"
)
# The first character of anything a chat template might use as a control string, in the text's NFKC form.  Each part is
# a character and a look ahead of bounded length, so that no text makes the search slow.
_CONTROL = re.compile(
    "|".join(
        (
            r"<(?=\|)",  # <|im_start|>, <|channel|>, <|tool_call|>
            r"\|(?=[>\]])",  # its end, and [|assistant|]'s
            r"\[(?=\|)",
            r"<(?=</?SYS)",  # <<SYS>>
            rf"<(?=/?(?i:{_WORDS})>)",  # </s>, <pad>, <think>
            r"<(?=/?\w{1,40}:\w{1,40}>)",  # <minimax:tool_call>
            r"<(?=/?[A-Za-z0-9]{1,40}_\w{1,60}>)",  # <start_of_turn>, <SPECIAL_11>, <tool_call>
            r"<(?=/?[A-Z][A-Z0-9]{2,40}>)",  # <TOOLCALL>
            r"<(?=(?:function|parameter)=)",
            r"\[(?=/?(?:[A-Z0-9]{1,40}_[A-Z0-9_]{1,40}|control_\d{1,4})\])",  # [TOOL_CALLS], [control_8]
            r"\[(?=/?(?:[A-Z][A-Z0-9]{2,40}|gMASK|sMASK|unused\d{1,4})\])",  # [INST]
            r"\[(?=e~\[)|\](?=~!?b[\[\]])",  # [e~[ and ]~b]
            r">(?=>[A-Z]{3,20}<<)",  # >>QUESTION<<
            r"/(?=(?i:no[_-]?)?(?i:think)(?:ing)?\b)",  # soft switches of reasoning: /no_think, /think
            r"\[(?=\.\.\. \d{1,12} characters cut)",  # our own mark of a cut
        )
    )
)


def clean(text: str) -> str:
    """The text with every invisible character shown as ``[U+XXXX]`` and every control string broken by a space."""
    text = text.replace("\r\n", "\n")
    if not text.replace("\n", "").replace("\t", "").isprintable():  # a quick test that most texts pass
        text = _shown(text)
    text = _LONG_BLANK.sub(lambda match: f"\n[{len(match.group())} characters of white space]\n", text)
    return _broken(text)


def fence_for(texts: Iterable[str]) -> str:
    """A fence of backticks longer than any inside the texts."""
    runs = (len(run) for text in texts if "```" in text for run in re.findall("`{3,}", text))
    longest = max(runs, default=2)
    return "`" * max(longest + 1, 4)


def _shown(text: str) -> str:
    left = _MOST_SHOWN

    def show(match: re.Match[str]) -> str:
        nonlocal left
        run = match.group()
        if len(run) > 8:
            return f"[{len(run)} invisible or control characters]"
        left -= len(run)
        return "".join(f"[U+{ord(character):04X}]" for character in run) if left >= 0 else "\ufffd"

    return _ODD.sub(show, text)


def _broken(text: str) -> str:
    """A space behind the first character of every control string."""
    if text.isascii():
        return _CONTROL.sub(lambda match: match.group() + " ", text)
    folds = {character: _fold(character) for character in set(text)}
    pieces = [folds[character] for character in text]
    ends = list(accumulate(map(len, pieces)))
    parts, last = [], 0
    for match in _CONTROL.finditer("".join(pieces)):
        # The character of the text that the match's first one came from.
        place = bisect_right(ends, match.start()) + 1
        if place > last:
            parts += [text[last:place], " "]
            last = place
    return "".join([*parts, text[last:]])


def _fold(character: str) -> str:
    """The character as a tokenizer that normalises reads it; only what folds to ASCII can be part of a token."""
    if character in _JOINERS:
        return ""
    folded = unicodedata.normalize("NFKC", character)
    return folded if folded.isascii() and folded.isprintable() else character
