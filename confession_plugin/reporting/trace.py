"""The JSONL trace: one line per confession, with its answer and its verdict."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from confession_plugin.records import Judged


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
