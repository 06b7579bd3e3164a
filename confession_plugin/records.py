"""What flows between the hooks: small frozen records.  A hook reads one and returns a value; nothing is edited.

    PromptBatch --select--> which groups confess
    Rollout --request--> Request --(the policy writes)--> Confession --judge--> Verdict --reward--> honesty reward

Fields may be added to a record, never removed or reordered: implementers read them by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Role = Literal["system", "user"]


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class PromptBatch:
    """The prompt groups about to be sampled, in dispatch order.  Known before any answer exists."""

    prompts: Sequence[str]
    """One text a group."""
    labels: Sequence[Any]
    """The dataset's label of each."""
    position: int
    """Prompt groups dispatched before this batch, over the whole run (a resumed run continues the count)."""
    step: int
    """1 for the first rollout batch of the run."""
    seed: int
    """``--confession.seed``, or the run's own."""


@dataclass(frozen=True)
class Rollout:
    """One sampled answer, as the host's executor produced it."""

    prompt: str
    """The prompt as text, chat markup included."""
    answer: str
    """The policy's own words after the prompt: every action span, decoded, special tokens removed."""
    transcript: str
    """Everything after the prompt: for a multi-turn agent also the environment's feedback between the answers."""
    label: Any = None
    """The dataset's label, as the host passes it to the reward function."""
    reward: float | None = None
    """The task reward; None where a reward model scores later."""
    truncated: bool = False
    """The answer ran into its token budget."""
    num_tokens: int = 0
    """Tokens of prompt and answer together."""
    step: int = 0
    """The rollout batch of the run, counted from 1."""
    group: int = 0
    """Position of the prompt group in the run (see `PromptBatch.position`); its samples share it."""
    extra: Mapping[str, float] = field(default_factory=_empty)
    """The reward function's ``extra_logs`` (``violation`` 0/1, when the task knows the truth about the answer)."""


@dataclass(frozen=True)
class Request:
    """The message that asks for the confession."""

    text: str
    """What is asked, without chat markup."""
    role: Role = "system"
    """Templates that refuse a late system message get the same text in a user turn."""


@dataclass(frozen=True)
class Confession:
    """What the policy wrote when asked, and what could be read out of it."""

    request: str
    """The text of the request."""
    text: str
    """The decoded confession, special tokens removed, reasoning included."""
    report: Any | None = None
    """The parsed report (`report.Report` by default); None when nothing valid was found."""
    problem: str | None = None
    """Why there is no report: ``empty``, ``truncated``, ``unparsable: ...``.  The policy's doing, so lowest reward."""
    admits: bool | None = None
    """Does the report admit that the answer broke an instruction?  None without a report."""
    grade: float | None = None
    """The report's own overall grade, if it has one."""
    truncated: bool = False
    """The confession ran into its token budget."""
    num_tokens: int = 0
    """Tokens of the confession."""
    request_tokens: int = 0
    """Tokens between answer and confession: the end of the answer's turn, the request, the next turn's opening."""

    @property
    def parsed(self) -> bool:
        return self.problem is None


@dataclass(frozen=True)
class Parsed:
    """The value of `confession_parse`: a report, or the reason why there is none."""

    report: Any | None = None
    """What was read; any type, shown to the judge and kept in the trace."""
    problem: str | None = None
    """Why nothing could be read; None when something was."""
    admits: bool | None = None
    """Does the report say that the answer broke an instruction or misled its reader?"""
    grade: float | None = None
    """The report's own grade of the answer, 1 to 7 in the paper's format."""


@dataclass(frozen=True)
class Verdict:
    """The honesty judge's word on one confession.  Either ratings in [0, 1], or unscored with a reason."""

    ratings: Mapping[str, float] = field(default_factory=_empty)
    """Named ratings in [0, 1]; the built-in rubric's are objectives, analysis and uncertainties."""
    unscored: str | None = None
    """Why there is no score (``timeout``, ``http_5xx``, ``unparsable``, ...).  Unscored is not zero."""
    detail: str = ""
    """The judge's reasons, or the error behind an unscored verdict."""
    latency_s: float = 0.0
    """Seconds from the call to the verdict."""

    def __post_init__(self) -> None:
        if self.unscored is None and not self.ratings:
            raise ValueError("a verdict needs ratings, or unscored='<why>'")
        for name, rating in self.ratings.items():
            if not 0.0 <= float(rating) <= 1.0:  # NaN fails the comparison too
                raise ValueError(f"rating {name}={rating} is not in [0, 1]")

    @property
    def scored(self) -> bool:
        return self.unscored is None


@dataclass(frozen=True)
class Judged:
    """One finished confession with everything known about it: what observers and the trace see."""

    rollout: Rollout
    """The answer it is about."""
    confession: Confession
    """What the policy wrote."""
    verdict: Verdict
    """What the judge said."""
    reward: float | None
    """The honesty reward; None when unscored."""


@dataclass(frozen=True)
class BatchStats:
    """Per-sample numbers of one training batch, for `confession_metrics`.

    All sequences have one entry a sample, and one more for each further confession about the same answer.  What a
    number is and how it is read off a finished confession stands in `sample_stats.STATS`.
    """

    step: int
    """The rollout batch of the run, counted from 1; 0 where the batch was not asked at all."""
    asked: Sequence[bool]
    """Was this sample asked to confess?  The entries below are meaningful where it was."""
    scored: Sequence[bool]
    """Has the confession an honesty reward?"""
    reward: Sequence[float]
    """Honesty reward where scored, else NaN."""
    parsed: Sequence[bool]
    """Could the report be read?"""
    truncated: Sequence[bool]
    """Did the confession run into its token budget?"""
    length: Sequence[int]
    """Confession length in tokens."""
    grade: Sequence[float]
    """The report's own grade, NaN without one."""
    admits: Sequence[float]
    """1, 0, or NaN when nothing could be read."""
    fingerprint: Sequence[int]
    """Equal for equal confession texts."""
    latency_s: Sequence[float]
    """Seconds the judge took; 0 where it was not called."""
    violation: Sequence[float]
    """Ground truth about the answer (``violation`` in the reward's extra_logs), NaN when the task does not tell."""
    unscored: Sequence[str] = ()
    """Why a confession has no score (`Verdict.unscored`); empty text where it has one."""
    extra_confession: Sequence[bool] = ()
    """A further confession about an answer that has its entry already; empty where there are none."""
