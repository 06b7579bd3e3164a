"""The check itself: what it goes through, what it says, which plugins it lets pass, and that it can fail."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from in_process import host_args
from seal_support import CONFIG, EXCLUSIVE, REWARD_MODEL, estimator, run, with_plugin

from confession_plugin import hookimpl
from confession_plugin.channels import HonestyChannel, TokenValues, estimate_scored
from confession_plugin.config import Config, parse_config
from confession_plugin.errors import ConfigError, PluginError
from confession_plugin.openrlhf.check import compare, seal
from confession_plugin.openrlhf.check.random_rollouts import REWARDS, by_content

# ── Comparators ──

ONES = torch.ones(3)
NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_number_that_is_not_finite_is_a_change_in_every_comparator(value: float) -> None:
    """On either side, and on both: nothing is equal to NaN."""
    bad = torch.tensor([1.0, value, 1.0])
    for one, other in ((ONES, bad), (bad, ONES), (bad, bad.clone())):
        assert compare.distance(one, other) == math.inf
        assert compare.largest_change([{"w": one}], [{"w": other}]) == math.inf
        assert not seal.Comparison("", "", compare.distance(one, other), 1e30).holds
    assert not seal.Comparison("", "", math.nan).holds


def test_of_several_breaks_the_one_nearest_to_the_cause_is_named() -> None:
    advantages, step = "RemoteExperienceMaker.compute_advantages_and_returns", "the trainers' training_step"
    broken = [
        seal.Comparison("gradients against stock", step, 1.0),
        seal.Comparison("task rewards against stock", advantages, 1.0),
        seal.Comparison("honesty -> answer advantages", advantages, 1.0),
        seal.Comparison("samples against stock", "SamplesGenerator", 0.0),
    ]
    for order in (broken, broken[::-1]):
        report = seal.SealReport("any", seal.nearest_first(order), 1, (), 0.0)
        assert report.violated and report.broken == broken[2]
        assert "honesty -> answer advantages moved by 1 " in str(report)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_pass_with_such_a_number_differs_from_itself(value: float) -> None:
    """In its advantages, its rewards, its gradients, its logged numbers."""
    masks = [one.action_mask.bool() for one in run(estimator("group_norm")).experiences]
    passed = run(estimator("group_norm"))
    assert compare.on_masks(passed, passed, masks) == compare.outcomes(passed, passed) == 0
    assert compare.gradients(passed, passed) == compare.answer_numbers(passed, passed) == 0
    assert compare.confession_losses(passed, passed) == compare.shaped(passed, passed) == 0 and compare.finite(passed)
    passed.experiences[0].advantages[masks[0]] = value
    passed.outcomes[0]["rewards"][0] = passed.shaped["kl"][0] = value
    next(iter(passed.trained.actor[0].values())).view(-1)[0] = value
    passed.trained.status["confession/policy_loss"] = passed.trained.status["kl"] = value
    assert compare.on_masks(passed, passed, masks) == compare.outcomes(passed, passed) == math.inf
    assert compare.gradients(passed, passed) == compare.answer_numbers(passed, passed) == math.inf
    assert compare.confession_losses(passed, passed) == compare.shaped(passed, passed) == math.inf
    assert not compare.finite(passed)


def test_gradients_that_one_side_lacks_are_a_change() -> None:
    assert compare.largest_change([{"w": ONES}], []) == math.inf
    assert compare.largest_change([{"w": ONES}], [{"v": ONES}]) == math.inf
    assert compare.distance(ONES, torch.ones(3, 1)) == math.inf


# ── What goes through it ──


def test_rewards_lie_on_the_lattices_of_real_graders_and_judges() -> None:
    found = {name: {reward(sample, sample // 4) for sample in range(16)} for name, reward in REWARDS.items()}
    assert found["zero or one"] == {0.0, 1.0}
    assert found["thirds"] == {0.0, 1 / 3, 2 / 3, 1.0}
    assert {round(9 * value) for value in found["ninths"]} <= set(range(10)) and len(found["ninths"]) > 5
    assert max(found["negative"]) < 0
    grouped = REWARDS["equal within a group"]
    assert len({grouped(sample, 1) for sample in range(16)}) == 1 and found["equal within a group"] == {0.0, 1.0}


def test_a_reward_model_gives_the_same_lattices() -> None:
    sequences = torch.randint(1, 32, (16, 9), generator=torch.Generator().manual_seed(0))
    own = torch.rand(16)
    for name in ("zero or one", "thirds"):
        scores = by_content(REWARDS[name])(sequences, torch.ones_like(sequences), own)
        assert scores.shape == own.shape and len(set(scores.tolist())) > 1


COMPARED = {
    "honesty -> samples",
    "honesty -> task rewards",
    "honesty -> answer advantages",
    "honesty -> answer gradients",
    "answer -> honesty advantages",
    "answer -> honesty losses",
    "answer -> honesty gradients",
    "samples against stock",
    "task rewards against stock",
}


@pytest.mark.parametrize("rewards", [[], REWARD_MODEL], ids=["a function", "a model"])
@pytest.mark.parametrize("config", [CONFIG, EXCLUSIVE], ids=["dual", "exclusive"])
def test_both_directions_are_compared_whatever_gives_the_rewards(rewards: list[str], config: Config) -> None:
    report = seal.check_seal(host_args(*estimator("reinforce_baseline"), *rewards), config)
    stocks = {"gradients against stock", "numbers against stock"}
    wanted = COMPARED | (stocks if config is CONFIG else {"exclusive gradients against stock"})
    assert {one.name for one in report.comparisons} == wanted
    assert report.holds, report


def test_the_line_names_what_was_not_exercised() -> None:
    flags = [
        "--ds.ring_attn_size",
        "2",
        "--actor.num_gpus_per_node",
        "8",
        "--ds.packing_samples",
        "--train.async_enable",
    ]
    flags += ["--ds.lora.rank", "4", "--train.max_epochs", "2", "--actor.aux_loss_coef", "0.01"]
    report = seal.check_seal(host_args(*estimator("group_norm"), *flags), CONFIG)
    assert str(report).startswith("seal holds: group_norm, ppo/token-mean, KL k1 in reward, dual; ")
    assert report.not_exercised == (
        *("ring attention", "several data-parallel ranks", "packed rows", "LoRA", "balancing loss of experts"),
        *("several epochs", "asynchronous rollouts"),
    )
    assert ", ".join(report.not_exercised) in str(report) and "\n" not in str(report)


def test_a_plain_run_leaves_nothing_out() -> None:
    assert "not exercised" not in str(seal.check_seal(host_args(*estimator("group_norm")), CONFIG))


# ── Plugins it lets pass, and plugins it does not ──


class RunningMean:
    """An honest plugin with a memory: the running mean of all honesty rewards is its baseline."""

    def __init__(self) -> None:
        self.mean, self.batches = 0.0, 0

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        self.batches += 1
        self.mean += (float(honesty.rewards[honesty.scored].mean()) - self.mean) / self.batches
        values = estimate_scored(honesty)
        return TokenValues([one - self.mean for one in values.advantages], values.returns)


IN_A_MODULE = """
from confession_plugin import hookimpl
from confession_plugin.channels import TokenValues, estimate_scored
seen = []

@hookimpl
def confession_advantages(honesty):
    seen.append(float(honesty.rewards[honesty.scored].mean()))
    values = estimate_scored(honesty)
    return TokenValues([one - sum(seen) / len(seen) for one in values.advantages], values.returns)
"""


def test_an_honest_plugin_with_a_memory_passes() -> None:
    """Every pass has a new plugin of its kind; the run's own has seen none of them."""
    plugin = RunningMean()
    assert seal.check_seal(host_args(*estimator("group_norm")), CONFIG, with_plugin(plugin)).holds
    assert plugin.batches == 0


def test_so_does_one_that_keeps_it_in_its_module(tmp_path: Any) -> None:
    path = tmp_path / "memory.py"
    path.write_text(IN_A_MODULE)
    config = CONFIG.model_copy(update={"plugins": (str(path),)})
    assert seal.check_seal(host_args(*estimator("group_norm")), config).holds


class Logarithm:
    """Fails on rewards that are not positive."""

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        return honesty.estimate(honesty.rewards.log(), torch.arange(len(honesty.rewards)), honesty.group_size)


def test_a_plugin_that_fails_is_named_with_the_rewards_it_failed_on() -> None:
    with pytest.raises(PluginError, match=r"'leak'.*not finite.*\(in the seal check, with .*rewards"):
        seal.check_seal(host_args(*estimator("group_norm")), CONFIG, with_plugin(Logarithm()))


# ── Settings that cannot work ──


def test_flags_under_which_the_hosts_own_numbers_are_not_finite() -> None:
    """Not a violated seal: no confession has been asked for yet."""
    with pytest.raises(ConfigError, match="the host's own numbers are not finite under these flags"):
        seal.check_seal(host_args(*estimator("group_norm"), "--rollout.temperature", "0"), CONFIG)


@pytest.mark.parametrize("value", ["inf", "nan", "1e400"])
def test_a_coefficient_that_is_not_finite_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"--confession.coef.*give a number"):
        parse_config(["--confession.coef", value])
