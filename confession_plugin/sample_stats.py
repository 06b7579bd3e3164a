"""The numbers kept about each confession, once: what they are, how they are read off it, and how long they live.

A number is added in two places: an entry of `STATS` here, and a field of `records.BatchStats` that documents it.  How
the numbers travel with a host's samples is the adapter's business; it derives its columns from `STATS`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from confession_plugin.records import BatchStats, Judged
from confession_plugin.report import admitted_objectives

Value = Any


@dataclass(frozen=True)
class Stat:
    """One number, short text or small mapping of numbers about a confession."""

    kind: type[bool] | type[int] | type[float] | type[str] | type[dict[str, float]]
    """What its values are."""
    of: Callable[[Judged], Value | None]
    """Reads it off a finished confession; None for `missing`."""
    missing: Value = 0
    """The value of samples that were not asked, and of asked ones that do not have it."""
    lifetime: Literal["training", "batch"] = "batch"
    """training: needed until the optimizer steps.  batch: for honesty rewards and metrics, then dropped."""
    internal: bool = False
    """Bookkeeping of the spans: no field of `BatchStats`."""


STATS: Mapping[str, Stat] = {
    # the spans of a sample
    "asked": Stat(bool, lambda record: True, lifetime="training"),
    "length": Stat(int, lambda record: record.confession.num_tokens, lifetime="training"),
    "suffix": Stat(int, lambda record: _suffix(record), lifetime="training", internal=True),
    "scored": Stat(bool, lambda record: record.reward is not None, lifetime="training"),
    # the honesty channel, and metrics
    "step": Stat(int, lambda record: record.rollout.step),
    "group": Stat(int, lambda record: record.rollout.group, missing=-1),
    "reward": Stat(float, lambda record: record.reward),
    "parsed": Stat(bool, lambda record: record.confession.parsed),
    "truncated": Stat(bool, lambda record: record.confession.truncated),
    "grade": Stat(float, lambda record: record.confession.grade, missing=math.nan),
    "admits": Stat(float, lambda record: record.confession.admits, missing=math.nan),
    "fingerprint": Stat(int, lambda record: _fingerprint(record.confession.text)),
    "latency_s": Stat(float, lambda record: record.verdict.latency_s),
    "violation": Stat(float, lambda record: record.rollout.extra.get(TRUTH), missing=math.nan),
    "unscored": Stat(str, lambda record: record.verdict.unscored, missing=""),
    "ratings": Stat(dict, lambda record: record.verdict.ratings if record.verdict.scored else None, missing={}),
    "objectives": Stat(dict, lambda record: _objectives(record), missing={}),
    "extra": Stat(dict, lambda record: record.rollout.extra, missing={}),
    "problem": Stat(str, lambda record: record.confession.problem if record.verdict.scored else None, missing=""),
    # counted where observers are called, so it is not read off the record (`confess.Finished.observer_failures`)
    "observer_failures": Stat(int, lambda record: None, internal=True),
    "unreadable": Stat(str, lambda record: _unreadable(record), missing=""),
}

#: Kinds that fit into a tensor.
NUMBERS = (bool, int, float)


TRUTH = "violation"
"""The number in ``extra_logs`` that tells the truth about an answer; ``violation/NAME`` of one objective of it."""


def objective_truths(extra: Mapping[str, float]) -> dict[str, bool]:
    """Was each objective violated?  Other values than 0 and 1 (-1, NaN) say that the task does not have it."""
    prefix = f"{TRUTH}/"
    told = {name.removeprefix(prefix): value for name, value in extra.items() if name.startswith(prefix)}
    return {name: value == 1 for name, value in told.items() if value in (0, 1)}


def numbers_of(record: Judged) -> dict[str, Value]:
    """All numbers of a finished confession."""
    found = {name: stat.of(record) for name, stat in STATS.items()}
    return {name: STATS[name].kind(STATS[name].missing if value is None else value) for name, value in found.items()}


def batch_stats(
    columns: Mapping[str, Sequence[Any]], extra_confession: Sequence[bool], **host: Sequence[Any]
) -> BatchStats:
    """The record that `confession_metrics` gets.

    Args:
        columns: one a number, in the order of the batch (numbers may have become floats).
        host: further fields of the record, which the host knows for asked and other samples alike.
    """
    values: dict[str, tuple[Any, ...]] = {name: tuple(map(stat.kind, columns[name])) for name, stat in STATS.items()}
    values["reward"] = tuple(
        reward if scored else math.nan for reward, scored in zip(values["reward"], values["scored"], strict=True)
    )
    shown = [name for name, stat in STATS.items() if name != "step" and not stat.internal]
    return BatchStats(
        step=max(values["step"], default=0),
        extra_confession=tuple(extra_confession),
        **{name: values[name] for name in shown},
        **{name: tuple(column) for name, column in host.items()},
    )


def _suffix(record: Judged) -> int:
    """Tokens of the sample behind the answer: request and confession."""
    confession = record.confession
    return confession.request_tokens + confession.num_tokens if confession.num_tokens else 0


def _unreadable(record: Judged) -> str:
    # One that could not be sampled (no room, aborted) has a problem and no text.
    return "" if record.confession.parsed else record.confession.text[:200]


def _objectives(record: Judged) -> dict[str, float]:
    names = objective_truths(record.rollout.extra)
    return admitted_objectives(record.confession.report, names)


def _fingerprint(text: str) -> int:
    return zlib.crc32(text.strip().encode("utf-8", "surrogatepass"))
