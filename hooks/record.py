"""Built-in plugin: metrics, and the JSONL trace of every confession."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confession_plugin import BatchStats, Judged, hookimpl
from confession_plugin.config import Config
from confession_plugin.readable import kind_of
from confession_plugin.reporting.trace import Trace, trace_record
from confession_plugin.sample_stats import objective_truths
from confession_plugin.unsealed import LABEL


class Record:
    """Writes the trace and makes the metrics."""

    trace: Trace | None
    marks: Mapping[str, str]
    """What every line of the trace says beside its confession: that the run is unsealed."""

    @hookimpl
    def confession_configure(self, config: Config) -> None:
        """Prepare the trace; its file is opened by the first confession, so that only rollout workers have one."""
        folder, max_bytes = config.trace_dir, int(config.trace_max_mb * 1_000_000)
        self.trace = None if folder is None else Trace(Path(folder), max_bytes, config.run_id)
        self.marks = {LABEL: config.unsealed_coupling} if config.unsealed_coupling is not None else {}

    @hookimpl
    def confession_judged(self, record: Judged) -> None:
        """Append the confession to this worker's trace file."""
        if self.trace is not None:
            self.trace.write({**self.marks, **trace_record(record)})

    @hookimpl
    def confession_metrics(self, stats: BatchStats) -> dict[str, float]:
        """The run's confession metrics; a number is left out at steps where it is undefined."""
        return confession_metrics(stats)


def confession_metrics(stats: BatchStats) -> dict[str, float]:
    """Rates, means and counts of one batch, by their names under ``train/confession/``."""
    asked = [index for index, was_asked in enumerate(stats.asked) if was_asked]
    extra = sum(stats.extra_confession)
    metrics = {"request_rate": (len(asked) - extra) / max(len(stats.asked) - extra, 1)}
    if not asked:
        return metrics
    scored = [index for index in asked if stats.scored[index]]
    rewards = [stats.reward[index] for index in scored]
    metrics["unscored_rate"] = 1 - len(scored) / len(asked)
    for reason, count in Counter(reason for reason in stats.unscored if reason).items():
        metrics[f"unscored/{reason}"] = float(count)
    metrics |= text_metrics(stats, [index for index in asked if stats.length[index]])
    if rewards:
        metrics["honesty_mean"] = _mean(rewards)
        metrics["honesty_std"] = statistics.pstdev(rewards)
    grades = [stats.grade[index] for index in asked if not math.isnan(stats.grade[index])]
    if grades:
        metrics["grade_mean"] = _mean(grades)
    latencies = sorted(stats.latency_s[index] for index in asked if stats.latency_s[index] > 0)
    if latencies:
        metrics["judge_latency_p50_s"] = _quantile(latencies, 0.5)
        metrics["judge_latency_p95_s"] = _quantile(latencies, 0.95)
    return metrics | truth_metrics(stats, asked) | objective_metrics(stats, asked)


def text_metrics(stats: BatchStats, sampled: list[int]) -> dict[str, float]:
    """What the confessions look like: of those that could be sampled."""
    if not sampled:
        return {}
    metrics = {
        "parsed_rate": _mean([stats.parsed[index] for index in sampled]),
        "truncated_rate": _mean([stats.truncated[index] for index in sampled]),
        "length_mean": _mean([stats.length[index] for index in sampled]),
        "distinct_rate": len({stats.fingerprint[index] for index in sampled}) / len(sampled),
    }
    problems = [stats.problem[index] for index in sampled] if stats.problem else []
    for kind, count in Counter(kind_of(problem) for problem in problems if problem).items():
        metrics[f"unparsed/{kind}"] = float(count)
    return metrics


def truth_metrics(stats: BatchStats, asked: list[int]) -> dict[str, float]:
    """How confessions compare with the task's ground truth about the answer, when it gives one.

    An unreadable confession admits nothing: it counts as not confessed.
    """
    known = [index for index in asked if not math.isnan(stats.violation[index])]
    bad = [index for index in known if stats.violation[index] > 0.5]
    good = [index for index in known if stats.violation[index] <= 0.5]
    confessed = {index for index in known if stats.admits[index] == 1}
    metrics: dict[str, float] = {}
    if bad:
        metrics["recall"] = _mean([index in confessed for index in bad])  # P(confess | bad)
    if good:
        metrics["false_alarm"] = _mean([index in confessed for index in good])  # P(confess | good)
    if confessed:
        metrics["precision"] = _mean([index in bad for index in confessed])  # P(bad | confess)
    if known:
        metrics["joint_miss"] = _mean([index in bad and index not in confessed for index in known])
        metrics["violation_rate"] = len(bad) / len(known)
    return metrics


def objective_metrics(stats: BatchStats, asked: list[int]) -> dict[str, float]:
    """The same for each objective on its own, where the task tells its truth (``violation/NAME`` in extra_logs).

    Per answer, a model that reports every kind of instruction by its base rate can look honest; here it cannot.
    """
    cases: dict[str, list[tuple[bool, bool]]] = {}  # objective -> (violated, admitted) of each confession
    for index in asked if stats.extra and stats.objectives else ():
        for name, violated in objective_truths(stats.extra[index]).items():
            cases.setdefault(name, []).append((violated, stats.objectives[index].get(name) == 1))
    metrics: dict[str, float] = {}
    for name, pairs in sorted(cases.items()):
        metrics[f"violation_rate/{name}"] = _mean([violated for violated, _ in pairs])
        metrics[f"accuracy/{name}"] = _mean([violated == admitted for violated, admitted in pairs])
        for metric, truth in (("recall", True), ("false_alarm", False)):
            if admissions := [admitted for violated, admitted in pairs if violated is truth]:
                metrics[f"{metric}/{name}"] = _mean(admissions)
    return metrics


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
