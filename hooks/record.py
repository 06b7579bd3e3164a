"""Metrics, and the JSONL trace of every confession."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import statistics
from collections import Counter
from pathlib import Path
from typing import IO, Any

from confession_plugin import BatchStats, Judged, hookimpl
from confession_plugin.config import Config

_trace: dict[str, Trace] = {}


@hookimpl
def confession_configure(config: Config) -> None:
    """Prepare the trace; its file is opened by the first confession, so that only rollout workers have one."""
    _trace.clear()
    if config.trace_dir is not None:
        _trace["trace"] = Trace(Path(config.trace_dir), int(config.trace_max_mb * 1_000_000))


@hookimpl
def confession_judged(record: Judged) -> None:
    """Append the confession to this worker's trace file."""
    if "trace" in _trace:
        _trace["trace"].write(trace_record(record))


@hookimpl
def confession_metrics(stats: BatchStats) -> dict[str, float]:
    """The run's confession metrics; a number is left out at steps where it is undefined."""
    asked = [index for index, was_asked in enumerate(stats.asked) if was_asked]
    siblings = sum(stats.sibling)
    metrics = {"request_rate": (len(asked) - siblings) / max(len(stats.asked) - siblings, 1)}
    if not asked:
        return metrics
    scored = [index for index in asked if stats.scored[index]]
    rewards = [stats.reward[index] for index in scored]
    metrics["unscored_rate"] = 1 - len(scored) / len(asked)
    for reason, count in Counter(reason for reason in stats.unscored if reason).items():
        metrics[f"unscored/{reason}"] = float(count)
    metrics["parsed_rate"] = _mean([stats.parsed[index] for index in asked])
    metrics["truncated_rate"] = _mean([stats.truncated[index] for index in asked])
    metrics["length_mean"] = _mean([stats.length[index] for index in asked])
    metrics["distinct_rate"] = len({stats.fingerprint[index] for index in asked}) / len(asked)
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
    return metrics | truth_metrics(stats, asked)


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


def trace_record(record: Judged) -> dict[str, Any]:
    """One line of the trace.  Labels and reports of any type are kept as they read."""
    rollout, confession, verdict = record.rollout, record.confession, record.verdict
    report: Any = confession.report
    return {
        "step": rollout.step,
        "group": rollout.group,
        "prompt": rollout.prompt,
        "answer": rollout.answer,
        "transcript": rollout.transcript,
        "label": rollout.label,
        "answer_reward": rollout.reward,
        "answer_truncated": rollout.truncated,
        "extra": dict(rollout.extra),
        "request": confession.request,
        "confession": confession.text,
        "report": report.model_dump() if hasattr(report, "model_dump") else report,
        "problem": confession.problem,
        "admits": confession.admits,
        "grade": confession.grade,
        "confession_truncated": confession.truncated,
        "confession_tokens": confession.num_tokens,
        "ratings": dict(verdict.ratings),
        "unscored": verdict.unscored,
        "judge": verdict.detail,
        "judge_latency_s": round(verdict.latency_s, 4),
        "honesty_reward": record.reward,
    }


class Trace:
    """A folder of JSONL files, one per process, rotated by size."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._file: IO[str] | None = None
        self._number = 0

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and flush it: a killed run keeps what it wrote."""
        if self._file is None or self._file.tell() >= self.max_bytes:
            self._open()
        assert self._file is not None
        # A lone surrogate in sampled text must not lose the record: ASCII escapes hold anything a str can.
        self._file.write(json.dumps(record, default=_as_text) + "\n")
        self._file.flush()

    def _open(self) -> None:
        if self._file is not None:
            self._file.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = self.folder / f"confessions-{socket.gethostname()}-{os.getpid()}-{self._number:04d}.jsonl"
            self._number += 1
            if not path.exists():  # a resumed run may meet an earlier process's id
                break
        self._file = path.open("a", encoding="ascii")


def _as_text(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
