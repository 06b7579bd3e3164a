"""``make demo-trl``: the loophole world in TRL, by its own script, for two steps."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from harness import HERE, read_scalars, run_cli


@pytest.mark.slow
def test_the_demo_runs_and_shows_its_table(tmp_path: Path) -> None:
    """Two steps are too few for its findings, and it says so; what they are after 63 is the README's."""
    script = HERE.parents[1] / "examples" / "loophole" / "run_trl.sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"OUT": str(tmp_path), "STEPS": "2", "PATH": path}
    result = run_cli(tmp_path, command=("bash", script), env=environment, expect=1)
    assert "seal holds: grpo" in result.output and "honest after a bluff" in result.output
    assert "P(admits a bluff)" in result.output
    scalars = read_scalars(tmp_path / "tensorboard")
    for name in ("train/reward", "train/violation", "train/confession/honest_without_bluff"):
        assert [step for step, _ in scalars[name]] == [1, 2]
    lines = [json.loads(line) for file in (tmp_path / "trace").iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == 2 * 416 and {line["extra"]["violation"] for line in lines} == {0.0, 1.0}
    assert (tmp_path / "loophole.png").stat().st_size > 10_000
