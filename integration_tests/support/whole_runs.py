"""What tests of whole runs share: the flags of a run with confessions, and what it leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from harness import HERE, CliResult

WORLDS = HERE / "worlds"


def confession_flags(
    folder: Path, probability: float = 0.5, judge: str | Path = WORLDS / "digits_judge.py"
) -> list[str]:
    """Confessions about anything, at most 16 tokens; the judge likes digits.  The trace goes to ``folder/trace``."""
    return [
        *("--confession.enable", "--confession.probability", str(probability)),
        *("--confession.judge_url", str(judge)),
        *("--confession.plugins", str(WORLDS / "any_report.py")),
        *("--confession.max_new_tokens", "16", "--confession.max_request_tokens", "64"),
        *("--confession.trace_dir", str(folder / "trace")),
    ]


def trace(folder: Path) -> list[dict[str, Any]]:
    """The confessions so far, a resumed run's last.  A run may be writing the last line of a file."""
    files = sorted((folder / "trace").glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    return [json.loads(line) for file in files for line in file.read_text().split("\n")[:-1]]


def check(
    result: CliResult, tmp_path: Path, *, probability: float, steps: int, per_step: int = 16, nested: int = 1
) -> None:
    """What holds in every mode: the share asked, one trace line a confession, finite numbers, a kept seal."""
    assert "seal holds" in result.output
    assert result.values("train/confession/request_rate") == [probability] * steps
    records = trace(tmp_path)
    assert len(records) == probability * steps * per_step * nested
    assert {record["step"] for record in records} == set(range(1, steps + 1))
    assert result.values("train/confession/unscored_rate") == [0.0] * steps
    by_step = [[r["honesty_reward"] for r in records if r["step"] == step + 1] for step in range(steps)]
    means = [sum(rewards) / len(rewards) for rewards in by_step]
    assert result.values("train/confession/honesty_mean") == pytest.approx(means, rel=1e-4)
    for name, points in result.scalars.items():
        assert all(math.isfinite(value) for _, value in points), name
