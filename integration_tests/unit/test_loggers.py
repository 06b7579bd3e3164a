"""Our numbers through the host's own loggers."""

from __future__ import annotations

from pathlib import Path

import in_process  # noqa: F401  (before anything of the host)
import pytest
from harness import wait_until
from in_process import host_args

STATUS = {"confession/request_rate": 0.25, "confession/honesty_mean": 0.5, "generated_samples": ["text", 1.0]}


def test_wandb_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real wandb client, offline: what it would send is in its run file."""
    from openrlhf.utils.logging_utils import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    logger = WandbLogger(host_args("--logger.wandb.key", "0" * 40))
    logger.log_train(1, STATUS)
    logger.close()
    (file,) = tmp_path.rglob("*.wandb")
    wanted = [b"train/confession/request_rate", b"train/confession/honesty_mean"]
    wait_until(lambda: all(name in file.read_bytes() for name in wanted))  # wandb's own process writes the file
