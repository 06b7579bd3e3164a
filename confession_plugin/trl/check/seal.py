"""The seal check: does this run, with its own GRPOConfig and plugins, keep the two channels apart?

A tiny model trains for a few steps, many times: stock, with confessions at ``coef 0``, and with one channel's rewards
replaced by others.  Answers, advantages, logged numbers, weights and the random state must be the same to the last bit
wherever the other channel is all that changed.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from confession_plugin.config import Config
from confession_plugin.errors import HostError, PluginError
from confession_plugin.lattices import REWARDS, RewardOf
from confession_plugin.seal_report import Comparison, SealReport, distance
from confession_plugin.startup import Run
from confession_plugin.trl.check import simulator
from confession_plugin.trl.check.simulator import Pass, World

_GENERATION = "_generate_and_score_completions"
_LOSS = "_compute_loss"

#: Rewards of the first pass; the others take their place.
BASE = "ninths"
#: Honesty rewards against the stock run, and rewards of either channel against others.
AGAINST_STOCK = ("ninths", "huge")
REPLACED = ("zero or one", "huge")


def require_for(args: Any, run: Run) -> None:
    """The seal holds for this run, which is said in one line.

    Raises:
        HostError: it does not; names the place.
    """
    report = check_seal(args, run)
    if report.violated:
        raise HostError(
            f"the seal is violated: {report.broken} ({report.combination}); this run would mix the reward channels "
            "and does not start"
        )
    if args.process_index == 0:
        print(f"[confession_plugin] {report}", file=sys.stderr, flush=True)


def check_seal(args: Any, run: Run) -> SealReport:
    """Run the check.

    Args:
        args: the run's GRPOConfig.
        run: its settings and plugins; every pass has new plugins of the same kind.

    Raises:
        PluginError: a plugin fails in one of the passes.
    """
    started = time.perf_counter()
    small = {
        "samples_per_answer": min(run.config.samples_per_answer, 3),
        "max_new_tokens": 5,
        "max_request_tokens": 64,
        "max_unscored": 1.0,
        "max_unparsed": 1.0,
        "request_format": "plain",
        "trace_dir": None,
    }
    config = run.config.model_copy(update=small)
    with simulator.in_a_world(config) as (world, folder):
        check = _Check(world, simulator.shrunk(args, folder), run, config)
        check.against_stock()
        check.honesty_against_answers()
        check.answers_against_honesty()
    seconds = time.perf_counter() - started
    return SealReport(describe(args, config), check.found(), check.passes, not_exercised(args), seconds)


class _Check:
    """The passes of one check and what came of comparing them."""

    def __init__(self, world: World, args: Any, run: Run, config: Config) -> None:
        self.world, self.args, self.run, self.config = world, args, run, config
        self.comparisons: dict[str, Comparison] = {}
        self.passes = 0
        # A GPU sums in no fixed order.
        self.allowed = 0.0 if torch.device(args.device).type == "cpu" else 1e-5

    def found(self) -> tuple[Comparison, ...]:
        """Nearest to the cause first."""
        return tuple(sorted(self.comparisons.values(), key=lambda one: one.seam != _GENERATION))

    def against_stock(self) -> None:
        """At coef 0 all is as in the stock run, whatever the confessions earn."""
        dual = self.config.model_copy(update={"answer_training": "dual"})
        stock = simulator.one_pass(self.world, self.args, REWARDS[BASE])
        self.passes += 1
        for name in AGAINST_STOCK:
            where, ours = f"honesty rewards {name}", self._pass(honesty=REWARDS[name], coef=0.0, config=dual)
            self._compare("answers against stock", _GENERATION, generations(stock.answers, ours.answers), where)
            self._compare("random state against stock", _GENERATION, random_state(stock, ours), where)
            self._compare("logged numbers against stock", _LOSS, logged(stock, ours), where, self.allowed)
            self._compare("weights against stock", _LOSS, distance(stock.weights, ours.weights), where, self.allowed)

    def honesty_against_answers(self) -> None:
        """Other honesty rewards move nothing of the answers that are sampled before the first step."""
        base = self._pass(honesty=REWARDS[BASE])
        for name in REPLACED:
            where, moved = f"honesty rewards {name}", self._pass(honesty=REWARDS[name])
            change = generations(base.answers[:1], moved.answers[:1])
            self._compare("honesty -> answers and their advantages", _GENERATION, change, where)

    def answers_against_honesty(self) -> None:
        """Where every group confesses and answers are context only, task rewards move nothing at all."""
        exclusive = self.config.model_copy(update={"answer_training": "exclusive"})
        base = self._pass(config=exclusive, everyone=True)
        for name in REPLACED:
            where, moved = f"task rewards {name}", self._pass(task=REWARDS[name], config=exclusive, everyone=True)
            self._compare("answer -> honesty advantages", _GENERATION, apart(base.honesty, moved.honesty), where)
            change = distance(base.weights, moved.weights)
            self._compare("answer -> weights by confessions alone", _LOSS, change, where, self.allowed)

    def _pass(
        self,
        *,
        task: RewardOf = REWARDS[BASE],
        honesty: RewardOf = REWARDS[BASE],
        coef: float = 1.0,
        config: Config | None = None,
        everyone: bool = False,
    ) -> Pass:
        self.passes += 1
        settings = (config or self.config).model_copy(update={"coef": coef})
        plugins = simulator.plugins_for(self.run, settings, honesty, everyone=everyone)
        with _named():
            return simulator.one_pass(self.world, self.args, task, Run(settings, plugins, ()))

    def _compare(self, name: str, seam: str, change: float, where: str, allowed: float = 0.0) -> None:
        known = self.comparisons.get(name)
        if known is None or not change <= known.change:
            self.comparisons[name] = Comparison(name, seam, change, allowed, where)


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except PluginError as error:
        raise PluginError(f"{error} (in the seal check)") from error


# ── How far two passes are apart; what is not finite, or of another shape, is as far apart as it gets ──


def apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Largest difference of two lists of tensors; inf where there is nothing to compare."""
    if len(one) != len(other):
        return math.inf
    return max((distance(a, b) for a, b in zip(one, other, strict=True)), default=math.inf)


def generations(one: Sequence[tuple[Tensor, Tensor]], other: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Largest difference of answers and their advantages."""
    return apart(list(itertools.chain(*one)), list(itertools.chain(*other)))


def random_state(one: Pass, other: Pass) -> float:
    """0 where the host's random state is the same after the last step."""
    return 0.0 if torch.equal(one.random_state, other.random_state) else math.inf


def logged(one: Pass, other: Pass) -> float:
    """Largest difference of the host's logged numbers, relative where they are large."""
    if [step.keys() for step in one.logged] != [step.keys() for step in other.logged]:
        return math.inf
    pairs = zip(one.logged, other.logged, strict=True)
    return max((_number(a[name], b[name]) for a, b in pairs for name in a), default=0.0)


def _number(one: Any, other: Any) -> float:
    if one == other or (one != one and other != other):  # a number that is undefined in both
        return 0.0
    if one is None or other is None or not math.isfinite(one - other):
        return math.inf
    return float(abs(one - other) / max(abs(one), 1.0))


# ── What it was about ──


def describe(args: Any, config: Config) -> str:
    """The combination under check."""
    parts = [args.loss_type, f"scale_rewards {args.scale_rewards}", "KL" if args.beta else "no KL"]
    parts.append(config.answer_training)
    if args.importance_sampling_level != "token":
        parts.append(f"{args.importance_sampling_level} level")
    if args.num_iterations > 1:
        parts.append("several iterations")
    if config.samples_per_answer > 1:
        parts.append("several confessions an answer")
    return ", ".join(parts)


def not_exercised(args: Any) -> tuple[str, ...]:
    """What the run has and a tiny model in memory has not."""
    wanted: Mapping[str, bool] = {
        "the run's own optimizer": args.optim not in ("adamw_torch", "adamw_torch_fused"),
        "torch.compile": bool(args.torch_compile),
    }
    return tuple(name for name, on in wanted.items() if on)
