"""Whole runs: the real command line, Ray, vLLM and DeepSpeed, with confessions, in every mode the host offers.

A random tiny model, rewarded for digits in its answer, and a judge that rewards digits in its confession: both
channels can be seen to learn in a few steps.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from harness import Tiny, base_flags, run_cli
from whole_runs import WORLDS, check, confession_flags, trace

from confession_plugin import PromptBatch
from confession_plugin.config import Config
from confession_plugin.plugins import configured

pytestmark = pytest.mark.e2e


def standard_errors(before: list[float], after: list[float]) -> float:
    """How far the mean has risen, in standard errors of the difference (Welch's t).

    A run's samples cannot be seeded, but their noise can be measured: without learning, four standard errors come by
    chance once in thirty thousand runs; this run rises by about ten.
    """
    error = (statistics.variance(before) / len(before) + statistics.variance(after) / len(after)) ** 0.5
    return (statistics.mean(after) - statistics.mean(before)) / error


def test_group_norm_with_kl_in_the_reward_and_resumed(tiny: Tiny, tmp_path: Path) -> None:
    """Both channels learn, each on its own tokens; every metric of the docs is there; resumed, the choice goes on."""
    steps = 16
    flags = [*base_flags(tiny, tmp_path, steps=steps), "--actor.adam.lr", "3e-3", "--algo.kl.init_coef", "0.001"]
    flags += ["--rollout.batch_size", "8", "--train.batch_size", "32", "--data.max_samples", str(8 * steps)]
    flags += ["--train.num_episodes", "2", "--ckpt.save_steps", "8"]
    result = run_cli(tmp_path, *flags, *confession_flags(tmp_path))
    check(result, tmp_path, probability=0.5, steps=steps, per_step=32)
    metrics = {name.removeprefix("train/confession/") for name in result.scalars if "/confession/" in name}
    assert metrics >= {
        *("request_rate", "honesty_mean", "honesty_std", "parsed_rate", "truncated_rate", "unscored_rate"),
        *("length_mean", "grade_mean", "judge_latency_p50_s", "judge_latency_p95_s", "distinct_rate", "policy_loss"),
    }
    records = trace(tmp_path)
    for channel in ("honesty_reward", "answer_reward"):
        first_steps = [record[channel] for record in records if record["step"] <= 4]
        last_steps = [record[channel] for record in records if record["step"] > steps - 4]
        rise = standard_errors(first_steps, last_steps)
        print(f"{channel}: {statistics.mean(first_steps):.2f} -> {statistics.mean(last_steps):.2f}, {rise:.1f} errors")
        assert rise > 4
    first = records[0]
    assert first["prompt"].startswith("<|im_start|>user\nWhat is") and first["request"] == "How did it go?"
    assert first["answer_reward"] is not None and first["answer"] and first["label"]
    # The host's own numbers are the answer's: 32 tokens at most, whatever a confession adds.
    assert max(result.values("train/rollout/response_length_mean")) <= 32
    assert max(result.values("train/total_length")) > 64
    check_resumed(tmp_path, [*flags, *confession_flags(tmp_path)], done=steps)


def check_resumed(folder: Path, flags: list[str], *, done: int, groups: int = 8) -> None:
    """One more episode from the last checkpoint: every step chooses what an uninterrupted run would have chosen."""
    before = trace(folder)
    result = run_cli(folder, *flags, "--train.num_episodes", "3", "--ckpt.load_enable")
    after = trace(folder)[len(before) :]
    total = done * 3 // 2
    assert {record["step"] for record in before} == set(range(1, done + 1))
    assert {record["step"] for record in after} == set(range(done + 1, total + 1))
    assert {record["group"] for record in before} < set(range(groups * done))
    assert {record["group"] for record in after} < set(range(groups * done, groups * total))
    hook = configured(Config(probability=0.5)).hook
    for step in range(total):
        batch = PromptBatch(("p",) * groups, ("l",) * groups, groups * step, step + 1, seed=42)
        chosen = {groups * step + i for i, asked in enumerate(hook.confession_select(batch=batch)) if asked}
        assert {record["group"] for record in before + after if record["step"] == step + 1} == chosen
    assert result.returncode == 0


def test_gae_with_a_critic_and_a_local_reward_model_in_exclusive_mode(tiny: Tiny, tmp_path: Path) -> None:
    flags = [*base_flags(tiny, tmp_path, steps=3), "--algo.advantage.estimator", "gae"]
    at = flags.index("--reward.remote_url")
    flags[at : at + 2] = ["--reward.model_name_or_path", str(tiny.model)]
    flags += ["--critic.adam.lr", "1e-3", "--algo.advantage.lambd", "0.95"]
    flags += ["--confession.answer_training", "exclusive"]
    result = run_cli(tmp_path, *flags, *confession_flags(tmp_path))
    check(result, tmp_path, probability=0.5, steps=3)
    assert len(result.values("train/confession/critic_loss")) == 3
    assert "exclusive, critic" in result.output
    assert all(record["answer_reward"] is None for record in trace(tmp_path))  # scored later, elsewhere
    assert len(result.values("train/reward")) == 3


def test_async_training_with_importance_correction(tiny: Tiny, tmp_path: Path) -> None:
    """Weights reach the engine, and a confession's log-probs are aligned: the mismatch stays at rounding size."""
    flags = [flag for flag in base_flags(tiny, tmp_path, steps=4) if flag != "--train.colocate_all"]
    flags += ["--algo.advantage.estimator", "rloo", "--train.async_enable", "--train.partial_rollout_enable"]
    flags += ["--algo.advantage.is_correction_level", "token"]
    result = run_cli(tmp_path, *flags, *confession_flags(tmp_path))
    check(result, tmp_path, probability=0.5, steps=4)
    assert max(abs(value) for value in result.values("train/vllm_kl")) < 0.02


def test_two_turn_agent_with_ground_truth(tiny: Tiny, tmp_path: Path) -> None:
    flags = [*base_flags(tiny, tmp_path, steps=3), "--train.agent_func_path", str(WORLDS / "two_turns.py")]
    flags += ["--algo.advantage.estimator", "dr_grpo", "--data.max_len", "64"]
    result = run_cli(tmp_path, *flags, *confession_flags(tmp_path))
    check(result, tmp_path, probability=0.5, steps=3)
    assert len(result.values("train/confession/joint_miss")) == 3
    for record in trace(tmp_path):
        assert " More. " not in record["answer"] and record["extra"].keys() == {"violation"}


def test_three_confessions_about_each_answer_in_dynamic_batches_of_packed_samples(tiny: Tiny, tmp_path: Path) -> None:
    flags = [*base_flags(tiny, tmp_path, steps=3), "--algo.advantage.estimator", "rloo"]
    flags += ["--train.dynamic_batch_enable", "--ds.packing_samples"]
    flags += ["--train.max_tokens_per_gpu", "256", "--rollout.max_tokens_per_gpu", "256"]
    flags += ["--algo.kl.use_loss", "--algo.kl.estimator", "k3"]
    flags += ["--confession.samples_per_answer", "3"]
    result = run_cli(tmp_path, *flags, *confession_flags(tmp_path))
    check(result, tmp_path, probability=0.5, steps=3, nested=3)
    assert "several confessions an answer" in result.output
    answers = [(record["step"], record["group"], record["answer"]) for record in trace(tmp_path)]
    assert all(answers.count(one) % 3 == 0 for one in answers)
    assert result.values("train/rollout/num_samples") == [16.0] * 3  # for the host, as many samples as ever
