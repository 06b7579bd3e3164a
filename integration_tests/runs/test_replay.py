"""Recorded rollouts through the real trainer processes, with and without confessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Tiny, base_flags, run_cli
from whole_runs import confession_flags

pytestmark = pytest.mark.e2e
STEPS = 4


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return {name: value.double() for name, value in found.items()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Length of the difference of all weights."""
    return float(torch.stack([(one[name] - other[name]).norm() for name in one]).norm())


@pytest.mark.parametrize("samples_per_answer", [1, 3])
def test_with_confessions_at_coef_0_and_without_the_plugin_the_weights_are_the_same(
    tiny: Tiny, tmp_path: Path, samples_per_answer: int
) -> None:
    """Four optimizer steps by real Ray and DeepSpeed processes on the same rollouts; only the trainer side differs."""
    recorded = tmp_path / "rollouts"
    common = ["--algo.advantage.estimator", "group_norm", "--algo.kl.use_loss", "--algo.kl.estimator", "k3"]
    confessions = [*confession_flags(tmp_path), "--confession.samples_per_answer", str(samples_per_answer)]
    ends: dict[str, dict[str, torch.Tensor]] = {}
    for name, ours in {
        "recorded": [*confessions, "--confession.record_rollouts", str(recorded)],
        "stock": ["--confession.replay_rollouts", str(recorded)],
        "coef 0": [*confessions, "--confession.replay_rollouts", str(recorded), "--confession.coef", "0"],
    }.items():
        folder = tmp_path / name.replace(" ", "_")
        result = run_cli(tmp_path, *base_flags(tiny, folder, steps=STEPS), *common, *ours)
        ends[name] = weights(folder / "out")
        assert len(result.values("train/policy_loss")) == STEPS
        if name == "stock":
            assert not [scalar for scalar in result.scalars if "confession" in scalar]
            stock_rewards = result.values("train/reward")
        if name == "coef 0":
            assert result.values("train/reward") == stock_rewards
            assert result.values("train/confession/request_rate") == [0.5] * STEPS
    start = weights(tiny.model)
    travelled = distance(start, ends["stock"])
    apart = distance(ends["stock"], ends["coef 0"])
    print(
        json.dumps(
            {"travelled": travelled, "apart at coef 0": apart, "apart": distance(ends["stock"], ends["recorded"])}
        )
    )
    # bf16 weights: a gradient that differs in its seventh digit moves a few of them by one rounding step.
    assert apart < 0.02 * travelled
    assert distance(ends["stock"], ends["recorded"]) > 5 * apart  # confessions do train when they may
