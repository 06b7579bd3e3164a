"""The seal in real optimizer steps: answers, advantages, logged numbers and weights, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
import torch
from trl_worlds import LOSS_TYPES, grpo_config, our_pass, run_with, settings, stock_pass, world_of

from confession_plugin.trl.check import seal
from confession_plugin.trl.check.simulator import World

#: Every loss type, and what else shapes a step.
COMBINATIONS: dict[str, dict[str, Any]] = {
    **{loss_type: {"loss_type": loss_type} for loss_type in LOSS_TYPES},
    "KL": {"beta": 0.04},
    "KL, two iterations": {"loss_type": "grpo", "beta": 0.04, "num_iterations": 2, "max_steps": 3},
    "sequence level (GSPO)": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "sequence level, luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "num_iterations": 2},
    "spread of the batch": {"scale_rewards": "batch"},
    "no spread": {"scale_rewards": "none", "loss_type": "dr_grpo"},
    "normalize_then_sum": {"multi_objective_aggregation": "normalize_then_sum"},
    "truncated masked": {"mask_truncated_completions": True},
    "truncated masked, bnpo": {"mask_truncated_completions": True, "loss_type": "bnpo"},
    "entropy bonus": {"entropy_coef": 0.01, "loss_type": "grpo"},
    "adaptive entropy": {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 2.0},
    "high entropy alone": {"top_entropy_quantile": 0.5},
    "old log-probs": {"steps_per_generation": 4, "off_policy_mask_threshold": 0.5},
    "one step a generation": {"steps_per_generation": 1, "gradient_accumulation_steps": 2},
    "two-sided clipping": {"delta": 1.5, "num_iterations": 2},
    "bf16": {"bf16": True},
    "no checkpointing": {"gradient_checkpointing": False},
    "padded": {"pad_to_multiple_of": 8},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_of(tmp_path_factory.mktemp("trl")) as world:
        yield world


@pytest.mark.parametrize("name", COMBINATIONS)
def test_at_coef_0_all_is_the_stock_runs(name: str, world: World, tmp_path: Path) -> None:
    """And at coef 1 it is not, so that equality says something; the answers before the first step are the same."""
    args = grpo_config(tmp_path, **COMBINATIONS[name])
    stock = stock_pass(world, args)
    ours = our_pass(world, args, run_with(settings(coef=0.0)))
    assert seal.generations(stock.answers, ours.answers) == 0
    assert seal.logged(stock, ours) == 0
    assert seal.distance(stock.weights, ours.weights) == 0
    assert torch.equal(stock.random_state, ours.random_state)
    trained = our_pass(world, args, run_with(settings(coef=1.0)))
    assert seal.distance(stock.weights, trained.weights) > 0
    assert seal.generations(stock.answers[:1], trained.answers[:1]) == 0
    assert any(one.abs().sum() > 0 for one in trained.honesty)


@pytest.mark.parametrize("changes", [{"samples_per_answer": 3}, {"answer_training": "exclusive"}])
def test_another_judge_leaves_the_first_answers_as_they_are(
    changes: dict[str, Any], world: World, tmp_path: Path
) -> None:
    args = grpo_config(tmp_path)
    one = our_pass(world, args, run_with(settings(**changes)))
    other = our_pass(world, args, run_with(settings(**changes), "huge"))
    assert seal.generations(one.answers[:1], other.answers[:1]) == 0
    assert seal.distance(one.weights, other.weights) > 0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_task_rewards_do_not_reach_confessions(loss_type: str, world: World, tmp_path: Path) -> None:
    """Every group confesses and answers are context only: task rewards move nothing at all."""
    args, config = grpo_config(tmp_path, loss_type=loss_type), settings(answer_training="exclusive")
    one, other = (our_pass(world, args, run_with(config, everyone=True), task) for task in ("ninths", "huge"))
    assert seal.distance(one.weights, other.weights) == 0
    assert seal.apart(one.honesty, other.honesty) == 0
    assert any(answers.abs().sum() > 0 for _, answers in other.answers)


def test_the_check_says_one_line(world: World, tmp_path: Path) -> None:
    report = seal.check_seal(grpo_config(tmp_path), run_with(settings(coef=1.0)))
    assert report.holds and str(report).startswith("seal holds: dapo, scale_rewards group, no KL, dual; ")
    assert len(report.comparisons) == 7 and "\n" not in str(report)
