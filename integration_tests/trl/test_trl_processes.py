"""Two data-parallel processes over gloo: confessions at `coef 0` are the stock run, and both take the same steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")
import torch
from trl_worlds import world_of

SUPPORT = Path(__file__).parents[1] / "support"


def two_processes(folder: Path, name: str, coef: str) -> torch.Tensor:
    """The weights after two steps."""
    script = [str(SUPPORT / "trl_two_processes.py"), str(folder), name, coef]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29563"]
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, *script], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    weights: torch.Tensor = torch.load(folder / f"{name}.pt")["weights"]
    return weights


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    with world_of(tmp_path) as world:
        for name in ("config.json", "model.safetensors", "generation_config.json"):
            target = tmp_path / "model" / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((Path(world.model) / name).read_bytes())
        world.tokenizer.save_pretrained(tmp_path / "model")
        world.prompts.save_to_disk(tmp_path / "prompts")
    stock, nothing, trained = (two_processes(tmp_path, f"run-{coef}", coef) for coef in ("stock", "0", "1"))
    assert torch.equal(stock, nothing)
    assert not torch.equal(stock, trained) and torch.isfinite(trained).all()
