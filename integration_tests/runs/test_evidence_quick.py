"""``make evidence-quick``: whole runs in the report world, stock and with confessions, through the default path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_honesty_rises_and_answers_stay_comparable(tmp_path: Path) -> None:
    """One seed of a few steps: directions, with room; the numbers with their intervals are docs/evidence.md's."""
    script = ROOT / "benchmarks" / "evidence" / "quick.py"
    done = subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    stock, confessions = (
        {line["arm"]: line["measured"]["steps"] for line in lines}[arm] for arm in ("stock", "confessions")
    )
    assert len(stock) == len(confessions) > 5
    assert confessions[-1]["honesty"] > confessions[0]["honesty"] + 0.05
    assert confessions[-1]["false_alarm"] < confessions[0]["false_alarm"]
    # Of the same weights and prompts, before anything is learnt, and after as far as one seed can tell.
    assert abs(confessions[0]["violation"] - stock[0]["violation"]) < 0.15
    assert abs(confessions[-1]["violation"] - stock[-1]["violation"]) < 0.4
    assert not [step["honesty"] for step in stock if step.get("honesty") is not None]
    assert (tmp_path / "quick.png").stat().st_size > 10_000
