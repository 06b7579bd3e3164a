"""What tests of whole runs share: the flags of a run with confessions, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import HERE

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
