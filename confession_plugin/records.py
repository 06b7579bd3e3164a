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
    train_size: int = 0
    """Prompt groups that train together; 0 where these do.  Several training batches may be sampled at once."""
    train_place: int = 0
    """Place of the first of these groups in its training batch: earlier groups may be waiting to fill it."""
    replaced: Sequence[bool] = ()
    """One bool a group where these replace groups that dynamic filtering dropped: did the dropped one confess?"""


@dataclass(frozen=True)
class Rollout:
    """One sampled answer, as the host's executor produced it."""

    prompt: str
    """What the policy read before its first word, as text, chat markup included."""
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
    """The training batch of the run that the answer is sampled for, counted from 1."""
    group: int = 0
    """Position of the prompt group in the run (see `PromptBatch.position`); its samples share it."""
    extra: Mapping[str, float] = field(default_factory=_empty)
    """The reward function's ``extra_logs`` (``violation`` 0/1, when the task knows the truth about the answer)."""
    sample: int = 0
    """Which of its group's samples this is, counted from 0."""
    visible_answer: str | None = None
    """`answer` without its reasoning, which the host found on token ids; None where it did not look."""
    visible_transcript: str | None = None
    """`transcript` without the policy's reasoning, likewise."""
    token_ids: Sequence[int] = ()
    """Prompt and transcript as token ids."""
    answer_spans: Sequence[tuple[int, int]] = ()
    """Where the policy's own words stand in `token_ids`: one (start, end) a turn."""
    log_probs: Sequence[float] | None = None
    """The engine's log-prob of each of `token_ids`, 0.0 where the policy did not write; None where not recorded."""
    columns: Mapping[str, Any] = field(default_factory=_empty)
    """The prompt's row of the dataset, where the host tells which it is."""
    messages: Sequence[Mapping[str, Any]] | None = None
    """The prompt as chat messages, where the dataset has it in that form."""


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
    visible: str | None = None
    """`text` without its reasoning, which the host found on token ids; None where it did not look."""
    report: Any | None = None
    """The parsed report (`report.Report` by default); None when nothing valid was found."""
    problem: str | None = None
    """Why there is no report, its kind first (``schema: ...``; see `report.Unreadable`): the policy's doing, so the
    lowest reward."""
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
    number: int = 0
    """Which of the confessions about its answer this is, counted from 0."""
    request_ids: Sequence[int] = ()
    """Those request tokens."""
    token_ids: Sequence[int] = ()
    """The confession's tokens."""
    log_probs: Sequence[float] | None = None
    """The engine's log-prob of each of `token_ids`; None where not recorded."""

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
    """The training batch of the run, counted from 1."""
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
    group: Sequence[int] = ()
    """The sample's prompt group (`Rollout.group`), asked or not."""
    label: Sequence[Any] = ()
    """The dataset's label of the prompt, asked or not."""
    answer_reward: Sequence[float] = ()
    """The answer's task reward, asked or not, a reward model's included."""
    ratings: Sequence[Mapping[str, float]] = ()
    """The judge's ratings; empty where unscored."""
    objectives: Sequence[Mapping[str, float]] = ()
    """Of each objective whose truth the task tells (``violation/NAME`` in the reward's extra_logs): 1 where the report
    says that it was not met, else 0; empty without a report."""
    extra: Sequence[Mapping[str, float]] = ()
    """The reward function's ``extra_logs`` of the answer (`Rollout.extra`)."""
    problem: Sequence[str] = ()
    """Why the confession could not be read (`Confession.problem`); empty text where it could."""
    unreadable: Sequence[str] = ()
    """The beginning of a confession that could not be read; empty text where it could."""
