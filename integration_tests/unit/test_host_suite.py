"""The host's own test-suite, which its wheel carries, with our seams in place: samples from elsewhere are welcome."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import HERE


def host_tests() -> Path:
    spec = importlib.util.find_spec("openrlhf")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[1] / "tests"


@pytest.mark.slow
@pytest.mark.parametrize("samples_per_answer", [1, 3])
def test_the_hosts_own_tests_pass_with_the_seams_in_place(tmp_path: Path, samples_per_answer: int) -> None:
    if not (host_tests() / "test_samples_generator.py").exists():
        pytest.skip("the installed host ships no tests")
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "host_suite", "-p", "no:cacheprovider", "-q", str(host_tests())]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "CONFESSION_TEST_SAMPLES": str(samples_per_answer)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed.group(1)) > 200
    placed = done.stdout.partition("seams placed:")[2]
    for seam in ("compute_advantages_and_returns", "_generate_vllm", "generate_samples", "masked_mean"):
        assert seam in placed
