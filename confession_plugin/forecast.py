"""What a step with confessions costs beside the stock run's, from the settings alone.

Limits and not means: how long answers and confessions will be is the policy's affair, so every share is what it comes
to when all texts reach their limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What shapes the cost of a step.  Lengths are in tokens."""

    groups: int
    """Prompt groups of a rollout batch."""
    samples: int
    """Answers of a group."""
    probability: float
    samples_per_answer: int
    max_length: int
    """Prompt and answer together, at most."""
    max_answer: int
    """Answer alone, at most."""
    request: int
    """The request as the policy sees it, turn change included."""
    max_confession: int
    micro_batch: int
    """Samples of a training micro-batch."""
    max_micro_batch: int | None = None
    """Tokens of a training micro-batch, where micro-batches are made by length."""
    own_rows: bool = False
    """Confessions are rows of their own, which read prompt and answer again."""
    vocabulary: int | None = None
    judge_message: int | None = None
    """The judge's message about the built-in case, in the policy's tokens; None where the judge is no server."""
    judge_reply: int = 0
    """A verdict, at most."""
    judge_connections: int = 1
    """Judgments under way at once, over all rollout workers."""
    judge_latency_s: float | None = None
    """Measured; None where the judge was not asked."""

    @property
    def calls(self) -> int:
        """Judgments of a step, rounded up."""
        return math.ceil(self.groups * self.samples * self.probability * self.samples_per_answer)

    @property
    def longest(self) -> int:
        """The longest sample that may have to be trained on."""
        return self.max_length + self.request + self.max_confession


def forecast(load: Load) -> list[tuple[str, str]]:
    """(what, how much) of a step."""
    return [*_judge(load), *_tokens(load), *_memory(load)]


def _judge(load: Load) -> list[tuple[str, str]]:
    share = f"{load.groups} groups x {load.samples} answers x {load.probability:g} x {load.samples_per_answer}"
    rows = [("judge calls", f"{load.calls} a step ({share})")]
    if load.judge_message is not None:
        most = load.calls * (load.judge_message + load.max_length + load.max_confession)
        rows.append(
            (
                "judge tokens",
                f"at least {_count(load.calls * load.judge_message)} read a step, at most {_count(most)} read and "
                f"{_count(load.calls * load.judge_reply)} written (in the policy's tokens)",
            )
        )
    if load.judge_latency_s is not None:
        waves = math.ceil(load.calls / load.judge_connections)
        rows.append(
            (
                "judge time",
                f"{load.judge_latency_s:.3g} s a call now, {load.judge_connections} calls at once: "
                f"{waves * load.judge_latency_s:.3g} s a step if it is as fast under load; that passes while other "
                "answers are generated, and holds up the step where it is longer than they take",
            )
        )
    return rows


def _tokens(load: Load) -> list[tuple[str, str]]:
    again = load.samples_per_answer - (not load.own_rows)  # rows that read prompt and answer again
    written = load.probability * load.samples_per_answer * load.max_confession / load.max_answer
    appended = 0 if load.own_rows else load.request + load.max_confession
    trained = load.probability * (appended + again * load.longest) / load.max_length
    return [
        ("generation", f"up to {written:.0%} more tokens written, and {load.request} read, in each asked sample"),
        ("training", f"up to {trained:.0%} more tokens through the model: requests, and what is read again, included"),
    ]


def _memory(load: Load) -> list[tuple[str, str]]:
    growth = load.longest / load.max_length
    rows = [("longest sample", f"{load.longest} tokens, {growth:.2f} times the stock run's {load.max_length}")]
    if load.max_micro_batch is not None:
        fits = load.longest <= load.max_micro_batch
        text = f"made by length, {load.max_micro_batch} tokens each: " + (
            "the longest sample fits" if fits else "the longest sample alone is LONGER, and is trained on in one piece"
        )
        rows.append(("micro-batches", text))
        return rows
    text = f"{load.micro_batch} samples, padded to the longest: up to {load.micro_batch * load.longest} tokens"
    if load.vocabulary is not None:
        size = load.micro_batch * load.longest * load.vocabulary * 4 / 2**30
        text += f", whose logits in fp32 take {size:.3g} GiB ({size / growth:.3g} GiB in the stock run)"
    return [*rows, ("micro-batches", text)]


def _count(number: int) -> str:
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if number >= limit:
            return f"{number / {'G': 10**9, 'M': 10**6, 'k': 10**3}[unit]:.3g} {unit}"
    return str(number)
