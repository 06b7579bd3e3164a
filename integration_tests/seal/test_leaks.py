"""A catalogue of leaks, put into plugins by hand.  Each entry says what becomes of it:

* (a) **impossible**: the plugin runs, does its worst, and nothing of the answer moves by a bit; it was handed copies
  of the honesty channel, and what it gives is read on that channel's tokens alone (here)
* (b) **refused at load**, (c) **refused at once** by the guard of what a hook may return (test_leaks_refused.py)
* (d) **caught by the check** before the run starts: what a plugin can do as Python code in the same process (here),
  and leaks in this package itself (test_leaks_in_the_product.py)
* (e) **stopped by a tripwire** in the run (test_tripwires.py)
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch
from in_process import host_args
from seal_support import COEF_0, CONFIG, estimator, run, with_plugin

from confession_plugin import BatchStats, PromptBatch, hookimpl
from confession_plugin.channels import HonestyChannel, TokenValues, estimate_scored
from confession_plugin.openrlhf.check import compare, seal
from confession_plugin.openrlhf.check.passes import masks_of

FLAGS = [*estimator("reinforce"), "--algo.kl.use_loss", "--algo.kl.init_coef", "0.1", "--algo.kl.estimator", "k3"]


class Attack:
    """A plugin with a leak.  `fired`: how often the leak was at work (a list: copies of the plugin share it)."""

    fired: list[str] = []  # noqa: RUF012

    def at_work(self) -> None:
        self.fired.append(type(self).__name__)


def shifted(values: TokenValues, by: torch.Tensor | float) -> TokenValues:
    """Other values on every token, the answers' too."""
    return TokenValues([one + by for one in values.advantages], [one + by for one in values.returns])


# ── Impossible ──


class EditsTheRewards(Attack):
    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        self.at_work()
        honesty.rewards.mul_(-7.0)
        return estimate_scored(honesty)


class WidensTheMasks(Attack):
    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        values = estimate_scored(honesty)
        for mask in honesty.masks:
            self.at_work()
            mask.fill_(True)
        return shifted(values, 5.0)


class ScoresTheUnscored(Attack):
    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        self.at_work()
        honesty.scored.fill_(True)
        return estimate_scored(honesty)


class ReturnToGo(Attack):
    """With gamma 1 a reward at the confession's end flows back to every earlier token."""

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        self.at_work()
        values = estimate_scored(honesty)
        flowed = [one.flip(-1).cumsum(-1).flip(-1) for one in values.advantages]
        return TokenValues(flowed, flowed)


class JointWhitening(Attack):
    """One mean and spread, taken off every token."""

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        self.at_work()
        values = estimate_scored(honesty)
        tokens = torch.cat([one.flatten() for one in values.advantages])
        return TokenValues([(one - tokens.mean()) / tokens.std() for one in values.advantages], values.returns)


class PunishesWhereHonestyIsZero(Attack):
    """Fires on values that judges give, never on random ones."""

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        values = estimate_scored(honesty)
        if (honesty.rewards[honesty.scored] == 0).any():
            self.at_work()
            return shifted(values, -1.0)
        return values


class ReadsTheScoredFlags(Attack):
    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        self.at_work()
        return shifted(estimate_scored(honesty), float(honesty.scored.float().mean()))


class FiresInLargeBatches(Attack):
    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        values = estimate_scored(honesty)
        if len(honesty.rewards) > 16:
            self.at_work()
            return shifted(values, 3.0)
        return values


class EditsItsValuesLater(Attack):
    """Keeps the tensors it gave and changes them when the metrics are made, after the merge."""

    kept: TokenValues | None = None

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        self.kept = estimate_scored(honesty)
        return self.kept

    @hookimpl
    def confession_metrics(self, stats: BatchStats) -> None:
        assert self.kept is not None
        self.at_work()
        for value in (*self.kept.advantages, *self.kept.returns):
            value.fill_(99.0)


def held_by(function: Any) -> Iterator[Any]:
    """Everything that a function's closure holds, and what the functions in there hold."""
    for cell in getattr(function, "__closure__", None) or ():
        yield cell.cell_contents
        yield from held_by(cell.cell_contents)


class EditsTheClosure(Attack):
    """Goes through what `honesty.estimate` holds and changes every tensor and setting it finds."""

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        values = estimate_scored(honesty)
        for host in (held for held in held_by(honesty.estimate) if hasattr(held, "rows")):
            for row in host.rows:
                for field in fields(row):
                    value = getattr(row, field.name)
                    if isinstance(value, torch.Tensor):
                        self.at_work()
                        value.zero_()
            maker = host._maker
            maker.kl_ctl.value, maker.args.algo.kl.init_coef = 9.0, 9.0
        return values


class GivesOtherTypes(Attack):
    """In float64, with a graph: the answer's values must not take either from them."""

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        self.at_work()
        values = estimate_scored(honesty)
        return TokenValues([one.double().requires_grad_() for one in values.advantages], values.returns)


class Fickle(Sequence[torch.Tensor]):
    """Gives other tensors each time it is read, the later ones not finite."""

    def __init__(self, values: Sequence[torch.Tensor]) -> None:
        self.values, self.reads = values, 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, at: Any) -> Any:
        self.reads += 1
        return self.values[at] if self.reads <= len(self.values) else self.values[at] + float("nan")

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[at] for at in range(len(self)))


class GivesOtherValuesEachTime(Attack):
    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        self.at_work()
        values = estimate_scored(honesty)
        return TokenValues(Fickle(values.advantages), values.returns)


class EditsTheStatistics(Attack):
    """An observer that writes into its record and gives numbers under the host's names."""

    @hookimpl
    def confession_metrics(self, stats: BatchStats) -> dict[str, float]:
        self.at_work()
        with pytest.raises(FrozenInstanceError):
            stats.reward = ()  # type: ignore[misc]
        with pytest.raises(TypeError):
            stats.scored[0] = False  # type: ignore[index]
        object.__setattr__(stats, "reward", (9.0,) * len(stats.reward))
        return {"reward": 9.0, "../reward": 9.0, "rollout/reward_mean": 9.0}


class WrapsTheOthers(Attack):
    """A wrapper around the hook may change the honesty channel's values, on that channel's tokens."""

    @hookimpl(wrapper=True)
    def confession_advantages(self, honesty: HonestyChannel) -> Any:
        values = yield
        self.at_work()
        honesty.rewards.zero_()
        return shifted(values, 4.0)


IMPOSSIBLE = [
    *(EditsTheRewards, WidensTheMasks, ScoresTheUnscored, ReturnToGo, JointWhitening, PunishesWhereHonestyIsZero),
    *(ReadsTheScoredFlags, FiresInLargeBatches, EditsItsValuesLater, EditsTheClosure, GivesOtherTypes),
    *(GivesOtherValuesEachTime, EditsTheStatistics, WrapsTheOthers),
]


@pytest.mark.parametrize("leak", IMPOSSIBLE)
def test_impossible(leak: type[Attack]) -> None:
    """(a) It does its worst, and the answer's advantages, gradients and numbers are those without it."""
    Attack.fired.clear()
    batch: dict[str, Any] = {"groups": 8, "honesty": lambda sample, group: float(sample % 3 == 0)}
    for config in (CONFIG, COEF_0):
        base, moved = run(FLAGS, config, **batch), run(FLAGS, config, with_plugin(leak()), **batch)
        assert compare.on_masks(base, moved, masks_of(base, CONFIG, answer=True)) == 0
        assert [one.advantages.dtype for one in moved.experiences] == [
            one.advantages.dtype for one in base.experiences
        ]
    assert compare.gradients(base, moved) == 0
    assert compare.answer_numbers(base, moved) == 0
    assert base.trained.kl_coefficient == moved.trained.kl_coefficient
    assert leak.__name__ in Attack.fired


@pytest.mark.parametrize("leak", [EditsTheRewards, EditsTheClosure, WrapsTheOthers])
def test_the_check_lets_a_plugin_without_reach_pass(leak: type[Attack]) -> None:
    assert seal.check_seal(host_args(*FLAGS), CONFIG, with_plugin(leak())).holds


def test_the_choice_cannot_look_at_rewards() -> None:
    """(a) What `confession_select` is given was known before any answer."""
    names = {field.name for field in fields(PromptBatch)}
    assert not names & {"reward", "rewards", "answer", "answers", "rollout", "rollouts", "scores", "honesty"}


# ── Caught by the check: Python code in the same process ──


class WalksTheStack(Attack):
    """Finds the answers' values in the frames that called it."""

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        frame: Any = sys._getframe()
        while frame is not None and "of_answers" not in frame.f_locals:
            frame = frame.f_back
        for value in frame.f_locals["of_answers"].advantages:
            value.add_(honesty.rewards.mean())
        return estimate_scored(honesty)


class FindsTheController(Attack):
    """Finds the host's KL controller among all living objects."""

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        for one in gc.get_objects():
            if type(one).__name__ == "FixedKLController":
                one.value = 1.0 + float(honesty.rewards[honesty.scored].mean())
        return estimate_scored(honesty)


class RewritesTheProduct(Attack):
    """Replaces this package's merge by one that adds both channels everywhere."""

    @hookimpl
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        from confession_plugin.openrlhf import advantages

        advantages.merge = _added  # type: ignore[assignment]
        values = estimate_scored(honesty)
        return TokenValues([one + honesty.rewards.mean() for one in values.advantages], values.returns)


def _added(answer: TokenValues, honesty: TokenValues, *masks: Any) -> TokenValues:
    return TokenValues([a + h for a, h in zip(answer.advantages, honesty.advantages, strict=True)], answer.returns)


@pytest.mark.parametrize("leak", [WalksTheStack, FindsTheController, RewritesTheProduct])
def test_caught_by_the_check(leak: type[Attack], monkeypatch: pytest.MonkeyPatch) -> None:
    """(d) Nothing in one process is out of Python's reach; what it does at the check's sizes is seen there."""
    from confession_plugin.openrlhf import advantages

    monkeypatch.setattr(advantages, "merge", advantages.merge)  # put back afterwards
    report = seal.check_seal(host_args(*FLAGS), CONFIG, with_plugin(leak()))
    assert not report.holds
