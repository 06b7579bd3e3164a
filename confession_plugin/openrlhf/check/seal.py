"""The seal check: does this run, with its own flags and plugins, keep the two channels apart?

Random rollouts go through the host's own code on a tiny model (see `simulator`), many times, with one channel's
rewards replaced by others: those that graders and judges give, and far-off ones.  What belongs to the other channel
must not move by a bit; and with ``coef 0`` the answers' gradients and logged numbers must be those of the stock code
on the same answers without confessions, whatever the confessions are like.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from confession_plugin import session
from confession_plugin.config import Config
from confession_plugin.errors import ConfigError, HostError, PluginError
from confession_plugin.openrlhf import seams
from confession_plugin.openrlhf.advantages import known_estimator
from confession_plugin.openrlhf.check import compare, simulator
from confession_plugin.openrlhf.check.compare import TOLERANCE
from confession_plugin.openrlhf.check.coverage import describe, not_exercised
from confession_plugin.openrlhf.check.passes import Pass, masks_of, one_pass, one_step, quiet, shrunk
from confession_plugin.openrlhf.check.random_rollouts import REWARDS, RandomRollouts, RewardOf, by_content, responses
from confession_plugin.plugins import PluginManager, configured, fresh_copies
from confession_plugin.seal_report import Comparison, SealReport

__all__ = ["Comparison", "SealReport", "check_seal", "quiet", "require_seal"]

_SAMPLES = "SamplesGenerator"
_ADVANTAGES = "RemoteExperienceMaker.compute_advantages_and_returns"
_STEP = "the trainers' training_step"

#: Hooks that the trainer's side of a run calls.
HOOKS = ("confession_advantages", "confession_metrics")

#: Rewards with which passes go on to the training steps: a step sees advantages, no rewards, so a few will do.
TRAINED = ("zero or one", "huge")


def require_seal(args: Any, config: Config, plugins: PluginManager | None = None) -> SealReport:
    """Check the seal on a run's own flags.

    Raises:
        HostError: it does not hold; names the seam.
        ConfigError: the host's own numbers are not finite under these flags.
    """
    report = check_seal(args, config, plugins)
    if report.violated:
        raise HostError(
            f"the seal is violated: {report.broken} ({report.combination}); this run would mix the reward "
            "channels and does not start"
        )
    return report


def check_seal(args: Any, config: Config, plugins: PluginManager | None = None) -> SealReport:
    """Run the check.

    Args:
        args: the host's parsed flags; batch and model sizes are shrunk, everything that shapes the algorithm is kept.
        config: the run's settings.  An unsealed coupling is left out of the passes: it does what the check looks for,
            and a leak beside it must not hide behind it.
        plugins: the run's plugins; loaded from `config` if not given.  Every pass has new ones of the same kind.

    Raises:
        ConfigError: the host's own numbers are not finite under these flags.
        PluginError: a plugin fails on one of the passes.
    """
    started = time.perf_counter()
    unsealed = config.unsealed_coupling
    small = {"samples_per_answer": min(config.samples_per_answer, 3), "trace_dir": None, "unsealed_coupling": None}
    config = config.model_copy(update=small)
    check = _Check(shrunk(args), config, plugins or configured(config))
    with quiet(), simulator.one_process():
        check.honesty_against_answer()
        check.answer_against_honesty()
        if config.answer_training == "exclusive":
            check.exclusive_against_stock()
    left_out = (*not_exercised(args, config), *check.left_out)
    seconds = time.perf_counter() - started
    return SealReport(
        describe(check.args, config),
        nearest_first(check.comparisons.values()),
        check.passes,
        left_out,
        seconds,
        unsealed,
    )


def nearest_first(comparisons: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """Nearest to the cause first: in the order of the data's way, and what is compared with stock behind the rest."""
    data_way = (_SAMPLES, _ADVANTAGES, _STEP)
    return tuple(sorted(comparisons, key=lambda one: (data_way.index(one.seam), "stock" in one.name)))


class _Check:
    """The passes of one check and what came of comparing them."""

    def __init__(self, args: Any, config: Config, plugins: PluginManager) -> None:
        advantage = args.algo.advantage
        self.args, self.config, self.plugins = args, config, plugins
        self.rollouts = RandomRollouts(
            groups=args.rollout.batch_size,
            samples=args.rollout.n_samples_per_prompt,
            unscored=(1,),
            samples_per_answer=config.samples_per_answer,
            with_log_probs=getattr(advantage, "is_correction_level", "off") != "off"
            or bool(getattr(advantage, "is_correction_enable", False)),
            with_rewards=bool(args.reward.remote_url),
        )
        self.comparisons: dict[str, Comparison] = {}
        self.left_out: list[str] = []
        self.passes = 0

    # ── The three parts ──

    def honesty_against_answer(self) -> None:
        """At coef 0: replaced honesty rewards move nothing, and all is as in the stock run."""
        stock = self._stock(self.args, self.rollouts)
        base = self._pass("random honesty rewards", self.rollouts)
        answers = masks_of(base, self.config, answer=True)
        self._against_stock("random honesty rewards", stock, base)
        for where, moved in self._other_honesty():
            self._compare("honesty -> samples", _SAMPLES, compare.outcomes(base, moved), where)
            self._compare("honesty -> task rewards", _ADVANTAGES, compare.shaped(base, moved), where)
            change = compare.on_masks(base, moved, answers)
            self._compare("honesty -> answer advantages", _ADVANTAGES, change, where)
            if moved.trained.actor:
                self._compare("honesty -> answer gradients", _STEP, compare.gradients(base, moved), where)
                self._against_stock(where, stock, moved)
        for where, moved in self._other_confessions():
            self._against_stock(where, stock, moved)

    def answer_against_honesty(self) -> None:
        """At coef 1: replaced task rewards move nothing of the confessions."""
        only_confessions = self.config.model_copy(update={"answer_training": "exclusive"})
        everyone = replace(self.rollouts, asked=(True,))
        base = self._pass("random task rewards", self.rollouts, coef=1.0)
        alone = self._pass("random task rewards", everyone, coef=1.0, config=only_confessions)
        confessions = masks_of(base, self.config)
        for name, reward in REWARDS.items():
            where = f"task rewards {name}"
            moved = self._pass(where, self.rollouts, coef=1.0, task=reward, train=name in TRAINED)
            change = compare.on_masks(base, moved, confessions)
            self._compare("answer -> honesty advantages", _ADVANTAGES, change, where)
            if name in TRAINED:
                self._compare("answer -> honesty losses", _STEP, compare.confession_losses(base, moved), where)
                # Where every group confesses and answers are context only, the gradient is the confessions' alone.
                change = compare.gradients(
                    alone, self._pass(where, everyone, 1.0, task=reward, config=only_confessions)
                )
                self._compare("answer -> honesty gradients", _STEP, change, where)

    def exclusive_against_stock(self) -> None:
        """The groups that are not asked train as in a stock run of these groups."""
        rollouts = replace(self.rollouts, asked=(True, False))
        size = rollouts.samples

        def trains(sample: int) -> bool:
            return sample // size % 2 == 1

        samples = sum(map(trains, range(rollouts.groups * size)))
        whole, half = one_step(self.args), one_step(self.args, samples)
        if known_estimator(self.args.algo.advantage.estimator).baseline != "batch":
            answers = [one for index, one in enumerate(responses(rollouts, confess=False)) if trains(index)]
            half.rollout.batch_size //= 2
            stock = self._finite(one_pass(half, answers))
        elif self.args.train.dynamic_batch_enable:
            self.left_out.append("exclusive answers against stock's")
            return
        else:
            half.rollout.micro_batch_size = 1  # the baseline is over all answers, trained or not
            stock = self._finite(one_pass(half, responses(rollouts, confess=False), trains=trains))
        self.passes += 1
        ours = self._pass("exclusive", rollouts, args=whole)
        self._compare("exclusive gradients against stock", _STEP, compare.gradients(stock, ours), "", TOLERANCE)

    # ── Passes ──

    def _other_honesty(self) -> Iterator[tuple[str, Pass]]:
        """The same confessions, other honesty rewards or scored flags."""
        for name, reward in REWARDS.items():
            where = f"honesty rewards {name}"
            yield where, self._pass(where, self.rollouts, honesty=reward, train=name in TRAINED)
        other = replace(self.rollouts, unscored=tuple(range(0, 3 * self.rollouts.samples, 2)))
        yield "other scored flags", self._pass("other scored flags", other)

    def _other_confessions(self) -> Iterator[tuple[str, Pass]]:
        """The same answers with other confessions, and with their rewards as servers send them."""
        changes: dict[str, dict[str, Any]] = {
            "confessions of one token": {"confession_tokens": 1},
            "long confessions": {"confession_tokens": 24, "unscored": ()},
            "none asked": {"asked": (False,)},
            "every group asked": {"asked": (True,)},
        }
        if self.rollouts.with_rewards:
            changes["rewards as lists of one"] = {"rewards_as": "list"}
        for where, change in changes.items():
            yield where, self._pass(where, replace(self.rollouts, **change))

    def _pass(
        self,
        where: str,
        rollouts: RandomRollouts,
        coef: float = 0.0,
        *,
        honesty: RewardOf | None = None,
        task: RewardOf | None = None,
        config: Config | None = None,
        args: Any = None,
        train: bool = True,
    ) -> Pass:
        """One pass under the seams, with plugins that have seen nothing yet."""
        self.passes += 1
        settings = (config or self.config).model_copy(update={"coef": coef})
        by_model = task is not None and not rollouts.with_rewards
        scores = by_content(task) if task is not None and by_model else None
        made = responses(rollouts, honesty=honesty, answer_reward=None if by_model else task)
        plugins = fresh_copies(self.plugins, settings, HOOKS)
        with self._named(where), session.using(settings, plugins), seams.in_this_process():
            return one_pass(args or self.args, made, scores=scores, train=train)

    def _stock(self, args: Any, rollouts: RandomRollouts) -> Pass:
        """The unpatched host on the answers alone."""
        self.passes += 1
        return self._finite(one_pass(args, responses(rollouts, confess=False)))

    @staticmethod
    def _finite(stock: Pass) -> Pass:
        if not compare.finite(stock):
            raise ConfigError(
                "the host's own numbers are not finite under these flags, without any confession; look at "
                "--rollout.temperature, --algo.* and --actor.* (a temperature of 0 divides by zero)"
            )
        return stock

    @staticmethod
    @contextmanager
    def _named(where: str) -> Iterator[None]:
        try:
            yield
        except PluginError as error:
            raise PluginError(f"{error} (in the seal check, with {where})") from error

    # ── Comparisons ──

    def _against_stock(self, where: str, stock: Pass, ours: Pass) -> None:
        self._compare("samples against stock", _SAMPLES, compare.outcomes(stock, ours), where)
        self._compare("task rewards against stock", _ADVANTAGES, compare.shaped(stock, ours), where)
        if self.config.answer_training == "exclusive":
            return
        self._compare("gradients against stock", _STEP, compare.gradients(stock, ours), where, TOLERANCE)
        if not self.args.train.dynamic_batch_enable:
            self._compare("numbers against stock", _STEP, compare.answer_numbers(stock, ours), where, TOLERANCE)

    def _compare(self, name: str, seam: str, change: float, where: str, allowed: float = 0.0) -> None:
        known = self.comparisons.get(name)
        if known is None or not change <= known.change:
            self.comparisons[name] = Comparison(name, seam, change, allowed, where)
