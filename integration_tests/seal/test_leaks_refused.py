"""Leaks in plugins that are refused: at load, or by the guard of what a hook may return (see test_leaks.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seal_support import CONFIG, estimator, run, with_plugin

from confession_plugin import hookimpl
from confession_plugin.channels import HonestyChannel, TokenValues, estimate_scored
from confession_plugin.config import Config
from confession_plugin.errors import PluginError
from confession_plugin.plugins import load_plugins

FLAGS = estimator("group_norm")

AT_LOAD = {
    "the form of 0.1, with both channels": (
        "def confession_advantages(batch): return batch.merge(batch.answer, batch.honesty)",
        r"confession_advantages\(batch\) is the form of 0.1; write confession_advantages\(honesty\)",
    ),
    "asks for the answer channel": (
        "def confession_advantages(honesty, answer): answer.rewards[honesty.rewards == 0] -= 1",
        "answer",
    ),
    "a choice that asks for rollouts": ("def confession_select(batch, rollouts): return [True]", "rollouts"),
    "a reward that asks for the task reward": ("def confession_reward(verdict, reward): return reward", "reward"),
}


@pytest.mark.parametrize("leak", AT_LOAD)
def test_refused_at_load(leak: str, tmp_path: Any) -> None:
    """(b) One line that names the plugin."""
    source, message = AT_LOAD[leak]
    plugin = tmp_path / "leaky.py"
    plugin.write_text(f"from confession_plugin import hookimpl\n@hookimpl\n{source}\n")
    with pytest.raises(PluginError, match=message) as error:
        load_plugins(Config(enable=True, plugins=(str(plugin),)))
    assert "leaky.py" in str(error.value) and "\n" not in str(error.value)


class Meddler(torch.Tensor):
    """Runs code of its own wherever it meets another tensor."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one in args:
            if type(one) is torch.Tensor and one.is_floating_point():
                one.add_(5.0)
        return super().__torch_function__(function, types, args, kwargs or {})


def _values(change: Any) -> Any:
    class Gives:
        @hookimpl
        def confession_advantages(self, honesty: HonestyChannel) -> Any:
            return change(estimate_scored(honesty))

    return Gives()


class WrapperThatGivesBoth:
    @hookimpl(wrapper=True)
    def confession_advantages(self, honesty: HonestyChannel) -> Any:
        values = yield
        return values, values


class Async:
    @hookimpl
    async def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        return estimate_scored(honesty)


class WrongRows:
    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        return honesty.estimate(honesty.rewards, torch.tensor([-1, 0, 0, 1]), 2)


def _poisoned(value: float) -> Any:
    return _values(lambda values: TokenValues([one + value for one in values.advantages], values.returns))


AT_ONCE = {
    "NaN": (_poisoned(float("nan")), "'leak'.*not finite in float32"),
    "infinite": (_poisoned(float("inf")), "'leak'.*not finite in float32"),
    "beyond float32": (
        _values(lambda v: TokenValues([one.double() + 1e39 for one in v.advantages], v.returns)),
        "'leak'.*not finite in float32",
    ),
    "as wide as answer and confession, twice": (
        _values(lambda v: TokenValues([torch.cat([one, one], -1) for one in v.advantages], v.returns)),
        "'leak'.*other shapes",
    ),
    "values for more batches": (
        _values(lambda v: TokenValues([*v.advantages, v.advantages[0]], v.returns)),
        "'leak'.*other shapes",
    ),
    "a tensor that runs code": (
        _values(lambda v: TokenValues([one.as_subclass(Meddler) for one in v.advantages], v.returns)),
        "'leak'.*other shapes",
    ),
    "both channels as a pair": (_values(lambda v: (v, v)), "'leak'.*TokenValues"),
    "a wrapper that gives a pair": (WrapperThatGivesBoth(), "'leak'.*TokenValues"),
    "async": (Async(), "'leak'.*cannot be async"),
    "rows that are none": (WrongRows(), "honesty.estimate: give .* rows that are different numbers below 16"),
}


@pytest.mark.parametrize("leak", AT_ONCE)
def test_refused_at_once(leak: str) -> None:
    """(c) The first batch that would train on it stops the run."""
    plugin, message = AT_ONCE[leak]
    with pytest.raises(PluginError, match=message):
        run(FLAGS, CONFIG, with_plugin(plugin))


@pytest.mark.parametrize("reward", [1e39, float("inf"), float("nan"), True, "1.0"])
def test_honesty_rewards_that_are_no_float32_are_refused_at_once(reward: Any) -> None:
    """(c) Where they are given, naming the plugin."""

    class Rewards:
        @hookimpl
        def confession_reward(self, verdict: Any, confession: Any) -> Any:
            return reward

    with pytest.raises(PluginError, match=r"'leak': confession_reward gave .*finite in float32"):
        with_plugin(Rewards()).hook.confession_reward(verdict=None, confession=None)
