"""The command line: which words are ours, and what ``--confession.help`` prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from confession_plugin.config import HIDDEN, PREFIX, Config, OptionGroup, flags_of, unknown_flag
from confession_plugin.errors import ConfigError

#: A flag that was meant for us: underscores, two words, a dash that a text editor made longer.
_NEARLY_OURS = re.compile(r"[-‐‑‒–—−]+confession(?![A-Za-z0-9])", re.IGNORECASE)


def split_argv(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the command line into ours and the host's.

    A token that starts with ``--confession.`` is ours, and with it every token up to the next ``--flag``.

    Raises:
        ConfigError: a flag that was probably meant for us and would not reach us.
    """
    ours: list[str] = []
    theirs: list[str] = []
    target = theirs
    for token in argv:
        if _NEARLY_OURS.match(token) and not token.startswith(PREFIX):
            raise ConfigError(unknown_flag(token))
        if token.startswith("--"):
            target = ours if token.startswith(PREFIX) else theirs
        target.append(token)
    return ours, theirs


def wants_help(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Is this a call for help, theirs or ours?"""
    return any(word in ("-h", "--help") for word in theirs) or any(name == "help" for name, _ in flags_of(ours))


def selection(ours: Sequence[str], names: Sequence[str]) -> list[str]:
    """The part of our command line that gives these flags."""
    kept: list[str] = []
    wanted = False
    for token in ours:
        if token.startswith(PREFIX):
            wanted = token[len(PREFIX) :].partition("=")[0] in names
        if wanted:
            kept.append(token)
    return kept


def format_help(options: OptionGroup | None = None) -> str:
    """All flags of ours with their values, defaults and descriptions."""
    lines = ["confession flags (all optional, beside the host's own):", ""]
    for name, kind, default, help in flag_table(options):
        lines.append(f"  {PREFIX}{name} {kind}".rstrip())
        lines.append(f"        {help}" + (f" (default: {default})" if default else ""))
    return "\n".join(lines) + "\n"


def flag_table(options: OptionGroup | None = None) -> list[tuple[str, str, str, str]]:
    """Rows (name, value's form, default, help) of all flags; the README's table is made of the same rows."""
    rows = []
    for name, field in Config.model_fields.items():
        if name in HIDDEN:
            continue
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in default)
        shown = "" if default is None or default is False else str(default)
        rows.append((name, _value_form(field.annotation), shown, field.description or ""))
    for option in (options or OptionGroup()).options.values():
        rows.append((option.name, "VALUE", "" if option.default is None else str(option.default), option.help))
    return rows


def _value_form(annotation: Any) -> str:
    if annotation is bool:
        return ""
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) is tuple:
        return "A,B,..."
    names = [part.__name__ for part in (get_args(annotation) or (annotation,)) if part is not type(None)]
    return {"int": "N", "float": "X", "str": "VALUE"}[names[0]]
