"""What a judge's server says, made fit to be printed and kept: no secret in it, and nothing a terminal would obey."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

_SHORTEST = 4
"""Anything shorter is no secret, and replacing it would spoil ordinary words."""

# Control characters, direction and zero-width marks, tags, lone surrogates; tab and newline are harmless.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)


class Redactor:
    """Replaces secrets by ``[key]``, in every form in which a server or a library repeats them.

    Use it before any cut: half a key is not recognised.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if len(secret) >= _SHORTEST for form in _forms(secret)}
        # The longest first: one secret may be the beginning of another.
        parts = sorted(map(re.escape, forms), key=len, reverse=True)
        self._pattern = re.compile("|".join(parts)) if parts else None

    def __call__(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub("[key]", text)


def _forms(secret: str) -> set[str]:
    return {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), json.dumps(secret)[1:-1]}


def as_text(text: str) -> str:
    """The text with characters that a terminal obeys or does not show, written as ``\\x1b`` or ``\\u202e``."""
    return _HIDDEN.sub(lambda match: match.group().encode("unicode_escape", "surrogatepass").decode(), text)


def one_line(text: str, width: int = 300) -> str:
    """The text in one line of at most `width` characters, harmless to a terminal."""
    # What is cut off anyway is not looked at: a reply may have megabytes.
    line = as_text(" ".join(text[: 20 * width].split()))
    return line if len(line) <= width and len(text) <= 20 * width else line[: width - 3] + "..."
