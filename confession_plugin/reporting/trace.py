"""The JSONL trace: one line per confession, with its answer and its verdict.

Every line is strict JSON (a number that is none is null) and says which schema it follows and which run wrote it.  A
request is written out once in each file, in the first line that has it; later lines name it by ``request_id``.  A run
that was killed and resumed holds its interrupted step twice: of lines with equal ``step``, ``group``, ``sample`` and
``number`` the last one counts.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import numbers
import os
import socket
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from confession_plugin.records import Judged

#: Of a line's fields; raised when one is removed or changes its meaning, not when one is added.
SCHEMA_VERSION = 1

logger = logging.getLogger(__name__)


def trace_record(record: Judged) -> dict[str, Any]:
    """One line of the trace.  Labels and reports of any type are kept as they read."""
    rollout, confession, verdict = record.rollout, record.confession, record.verdict
    report: Any = confession.report
    return {
        "step": rollout.step,
        "group": rollout.group,
        "sample": rollout.sample,
        "number": confession.number,
        "prompt": rollout.prompt,
        "answer": rollout.answer,
        "transcript": rollout.transcript,
        "label": rollout.label,
        "answer_reward": rollout.reward,
        "answer_truncated": rollout.truncated,
        "extra": dict(rollout.extra),
        "request_id": f"{zlib.crc32(confession.request.encode('utf-8', 'surrogatepass')):08x}",
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
        **_without_reasoning(record),
    }


def _without_reasoning(record: Judged) -> dict[str, str]:
    """What the judge was shown of each text, where that is not the whole text."""
    rollout, confession = record.rollout, record.confession
    texts = {
        "visible_answer": (rollout.visible_answer, rollout.answer),
        "visible_transcript": (rollout.visible_transcript, rollout.transcript),
        "visible_confession": (confession.visible, confession.text),
    }
    return {name: seen for name, (seen, whole) in texts.items() if seen is not None and seen != whole}


class Trace:
    """A folder of JSONL files, one per process, rotated by size.

    Args:
        folder: made when the first line is written, and again whenever somebody deletes it.
        max_bytes: a file that has reached this size is followed by the next one.
        run_id: written into every line; several runs may share a folder.
    """

    def __init__(self, folder: Path, max_bytes: int, run_id: str = "") -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.run_id = run_id
        self.reopened = 0
        """How often the file was gone; what had been written to it went with it."""
        self._file: IO[str] | None = None
        self._number = 0
        self._requests: set[str] = set()  # ids of those that stand in the file

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and flush it: a killed run keeps what it wrote.

        Raises:
            OSError: the disk is full, or the folder cannot be made.
        """
        line = {"schema": SCHEMA_VERSION, "run": self.run_id, **record}
        if self._file is not None and self._gone(self._file):
            self.reopened += 1
            line["trace_reopened"] = self.reopened
            logger.warning("the trace's file in %s was deleted; a new one is begun", self.folder)
            self._open()
        elif self._file is None or self._file.tell() >= self.max_bytes:
            self._open()
        assert self._file is not None
        if line.get("request_id") in self._requests:
            del line["request"]
        elif "request_id" in line:
            self._requests.add(line["request_id"])
        # A lone surrogate in sampled text must not lose the record: ASCII escapes hold anything a str can.
        self._file.write(json.dumps(_strict(line), allow_nan=False) + "\n")
        self._file.flush()

    def _open(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._requests.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            path = self.folder / f"confessions-{socket.gethostname()}-{os.getpid()}-{self._number:04d}.jsonl"
            self._number += 1
            try:
                self._file = path.open("x", encoding="ascii")
            except FileExistsError:  # a resumed run may meet an earlier process's id
                continue

    @staticmethod
    def _gone(file: IO[str]) -> bool:
        # A deleted file can be written to, by this process and for no one.  Network file systems rename it instead.
        try:
            here, there = os.fstat(file.fileno()), os.stat(file.name)
        except OSError:
            return True
        return here.st_nlink == 0 or (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)


def _strict(value: Any) -> Any:
    """The value as strict JSON can hold it: null for NaN and infinities, text for what JSON does not know."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _strict(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(part) for part in value]
    return str(value)
