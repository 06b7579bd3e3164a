"""Why a confession has no score: the closed list of reasons, each with what it means and whether it was tried again.

The metrics ``unscored/<reason>``, the trace's ``unscored`` field and the table in docs/judge.md use these values.  A
function judge may give any short text of its own beside them; a failure of the second model's report carries the same
values with `CALIBRATION` before them.
"""

from __future__ import annotations

from enum import Enum

CALIBRATION = "calibration_"
"""Prefix of a reason where the calibration report failed, not the judgment."""


class Reason(str, Enum):
    """One way to end without a score.  A member is its value: ``f"{Reason.TIMEOUT}" == "timeout"``."""

    doc: str
    """What happened, for people."""
    retried: str
    """Whether it is tried again before it counts."""

    def __new__(cls, value: str, doc: str, retried: str) -> Reason:
        member = str.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        member.retried = retried
        return member

    def __str__(self) -> str:
        return str(self.value)

    TIMEOUT = (
        "timeout",
        "no whole reply within `--confession.judge_timeout`",
        "yes, then at another server",
    )
    CONNECTION = (
        "connection",
        "refused, reset, cut off within the reply, or no way through a proxy",
        "yes, then at another server",
    )
    RATE_LIMITED = ("rate_limited", "HTTP 429; `Retry-After` is kept to", "yes, then at another server")
    HTTP_5XX = ("http_5xx", "the server failed", "yes, then at another server")
    HTTP_4XX = ("http_4xx", "the server refuses the request; the status is in the detail", "at another server")
    AUTH = ("auth", "HTTP 401 or 403: a wrong key", "at another server")
    NOT_FOUND = ("not_found", "HTTP 404: a wrong path or model", "at another server")
    CONTEXT_TOO_LONG = (
        "context_too_long",
        "even the shortest form does not fit",
        "the middle of the transcript is cut first, then answer and prompt, with a visible mark; the report never",
    )
    REFUSED = ("refused", "the judge declined, or a content filter did", "at another server")
    BAD_RESPONSE = ("bad_response", "not a chat completion, or one larger than any verdict", "once")
    UNPARSABLE = ("unparsable", "no verdict in the reply", "once, with the problem named")
    NO_ROOM = ("no_room", "no context left to confess in", "no")
    NO_VERDICT = ("no_verdict", "a function judge returned None", "no")
    ABORTED = ("aborted", "the engine gave up the confession before it was finished", "no")


def reason_table() -> list[str]:
    """The lines of the table in docs/judge.md."""
    rows = [f"| `{reason}` | {reason.doc} | {reason.retried} |" for reason in Reason]
    calibration = f"| `{CALIBRATION}...` | the second model's report failed, for any of these reasons | as above |"
    return ["| reason | what happened | tried again |", "| --- | --- | --- |", *rows, calibration]
