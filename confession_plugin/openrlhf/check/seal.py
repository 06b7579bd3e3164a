"""The seal check: does this run, with its own flags and plugins, keep the two channels apart?

Random rollouts go through the host's own code on a tiny model (see `simulator`), several times, with one channel's
rewards replaced.  What belongs to the other channel must not move by a bit; and with ``coef 0`` the answers' gradients
must be those of the stock code on the same answers without confessions.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from confession_plugin import session
from confession_plugin.config import Config
from confession_plugin.errors import HostError
from confession_plugin.openrlhf import seams
from confession_plugin.openrlhf.check import simulator
from confession_plugin.openrlhf.check.random_rollouts import RandomRollouts, responses
from confession_plugin.openrlhf.extra_confessions import unfold
from confession_plugin.plugins import PluginManager, configured

#: Largest relative difference to the stock step's gradients in fp32: the same sums in another order.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Leak:
    """One direction of the seal and what moved in it."""

    name: str
    seam: str
    change: float
    allowed: float = 0.0

    @property
    def holds(self) -> bool:
        return self.change <= self.allowed  # NaN does not hold


@dataclass(frozen=True)
class SealReport:
    """The outcome of a check."""

    combination: str
    leaks: tuple[Leak, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        return all(leak.holds for leak in self.leaks)

    def __str__(self) -> str:
        parts = ", ".join(f"{leak.name} {leak.change:.2g}" for leak in self.leaks)
        verdict = "holds" if self.holds else "VIOLATED"
        return f"seal {verdict}: {self.combination}; largest change: {parts} ({self.seconds:.1f} s)"


def require_seal(args: Any, config: Config, plugins: PluginManager | None = None) -> SealReport:
    """Check the seal on a run's own flags.

    Raises:
        HostError: it does not hold; names the seam.
    """
    report = check_seal(args, config, plugins)
    if not report.holds:
        broken = next(leak for leak in report.leaks if not leak.holds)
        raise HostError(
            f"the seal is violated at {broken.seam} ({broken.name}: changed by {broken.change:.2g}, allowed "
            f"{broken.allowed:g}; {report.combination}); this run would mix the reward channels and does not start"
        )
    return report


def check_seal(args: Any, config: Config, plugins: PluginManager | None = None) -> SealReport:
    """Run the check.

    Args:
        args: the host's parsed flags; batch and model sizes are shrunk, everything that shapes the algorithm is kept.
        config: the run's settings.
        plugins: the run's plugins; loaded from `config` if not given.
    """
    started = time.perf_counter()
    small = shrunk(args)
    config = config.model_copy(update={"samples_per_answer": min(config.samples_per_answer, 3)})
    plugins = plugins or configured(config.model_copy(update={"trace_dir": None}))
    group = small.rollout.n_samples_per_prompt
    rollouts = RandomRollouts(
        groups=small.rollout.batch_size,
        samples=group,
        unscored=(1,),
        samples_per_answer=config.samples_per_answer,
        with_log_probs=getattr(small.algo.advantage, "is_correction_level", "off") != "off"
        or bool(getattr(small.algo.advantage, "is_correction_enable", False)),
        with_rewards=bool(small.reward.remote_url),
    )

    def run(coef: float, **changes: Any) -> Pass:
        with session.using(config.model_copy(update={"coef": coef}), plugins), seams.in_this_process():
            return one_pass(small, responses(rollouts, **changes))

    with quiet(), simulator.one_process():
        base = run(0.0)
        moved = run(0.0, honesty=lambda sample: (-1.0) ** sample * 1e6)
        stock = one_pass(small, responses(rollouts, confess=False))  # unpatched, on the same answers alone
        honesty_at, answer_at = masks_of(base, config), masks_of(base, config, answer=True)
        leaks = [
            Leak("samples against stock", "SamplesGenerator", outcomes(stock, base)),
            Leak("honesty -> samples", "SamplesGenerator", outcomes(base, moved)),
            Leak("honesty -> answer advantages", _ADVANTAGES, difference(base, moved, answer_at)),
            Leak("honesty -> answer gradients", _STEP, gradients(base, moved)),
        ]
        if rollouts.with_rewards:
            confessions = run(1.0)
            changed = run(1.0, answer_reward=lambda sample: (-1.0) ** sample * 5.0)
            leaks += [
                Leak("answer -> honesty advantages", _ADVANTAGES, difference(confessions, changed, honesty_at)),
                Leak("answer -> honesty losses", _STEP, confession_losses(confessions, changed)),
            ]
        if config.answer_training == "dual":
            leaks.append(Leak("gradients against stock", _STEP, gradients(stock, base), TOLERANCE))
    return SealReport(describe(small, config), tuple(leaks), time.perf_counter() - started)


_ADVANTAGES = "RemoteExperienceMaker.compute_advantages_and_returns"
_STEP = "the trainers' training_step"

#: What the host reads off a sample besides its tokens: rewards, dynamic filtering, length penalties, truncation.
OUTCOMES = ("rewards", "scores", "response_length", "truncated")


@dataclass(frozen=True)
class Pass:
    """One rollout batch through the host: samples, experiences, gradients."""

    outcomes: list[dict[str, torch.Tensor]]
    experiences: list[Any]
    trained: simulator.Trained


def one_pass(args: Any, responses: list[Any]) -> Pass:
    """One batch under the seams now in place."""
    bench = simulator.Simulator(args)
    samples = bench.samples(responses)
    seen = [
        {name: getattr(sample, name).clone() for name in OUTCOMES if getattr(sample, name) is not None}
        | {"clipped": sample.info["response_clip_ratio"].clone()}
        for sample in samples
    ]
    experiences = bench.experiences(samples)
    rewards = torch.cat([one.rewards for one in experiences])
    order = torch.tensor([index for one in experiences for index in one.index]).argsort()
    # After the reward model and the length penalties.
    seen.append({"shaped rewards": rewards[order], "kl": torch.cat([one.info["kl"] for one in experiences])[order]})
    # Unfolded: every confession is a row of what the masks and differences below look at.
    return Pass(seen, [unfold(one) for one in experiences], bench.train(experiences))


def masks_of(passed: Pass, config: Config, *, answer: bool = False) -> list[torch.Tensor]:
    """(B, A) bool per experience: the tokens one channel trains."""
    from confession_plugin.openrlhf.experiences import spans_of

    return [
        spans_of(one).trained_masks(one.action_mask, config.answer_training)[0 if answer else 1]
        for one in passed.experiences
    ]


def outcomes(one: Pass, other: Pass) -> float:
    """Largest change of what the host reads off samples besides their tokens."""
    worst = 0.0
    for a, b in zip(one.outcomes, other.outcomes, strict=True):
        if a.keys() != b.keys():
            return float("inf")
        for name in a:
            change = float((a[name].double() - b[name].double()).abs().max())
            # A mean over as many numbers and some zeros: the same sum in another order.
            worst = max(worst, change if name != "kl" or change > TOLERANCE else 0.0)
    return worst


def difference(one: Pass, other: Pass, masks: list[torch.Tensor]) -> float:
    """Largest change of advantages and returns on the masks; NaN when either side holds one."""
    worst = torch.zeros(())
    for a, b, mask in zip(one.experiences, other.experiences, masks, strict=True):
        for name in ("advantages", "returns"):
            change = (getattr(a, name) - getattr(b, name))[mask].abs()
            worst = torch.maximum(worst, change.max() if len(change) else worst)
    return float(worst)


def gradients(one: Pass, other: Pass) -> float:
    """Largest relative change of actor and critic gradients over all optimizer steps."""
    a, b = one.trained, other.trained
    return max(largest_change(a.actor, b.actor), largest_change(a.critic, b.critic))


def confession_losses(one: Pass, other: Pass) -> float:
    """Largest change of the confession's loss terms."""
    a, b = one.trained.status, other.trained.status
    names = [name for name in a if name.startswith("confession/") and name.endswith("_loss")]
    return max((abs(a[name] - b[name]) for name in names), default=0.0)


def shrunk(args: Any) -> Any:
    """The run's flags at the size of a check: few short samples, one process, nothing that needs a GPU."""
    small = copy.deepcopy(args)
    group = min(args.rollout.n_samples_per_prompt, 4)
    small.rollout.n_samples_per_prompt = group
    small.rollout.batch_size = 16 // group
    small.rollout.micro_batch_size = 4
    small.rollout.max_tokens_per_gpu = small.train.max_tokens_per_gpu = 64
    # Two optimizer steps of two micro-batches each.
    small.train.batch_size, small.train.micro_batch_size, small.train.max_epochs = 8, 4, 1
    if args.train.dynamic_batch_enable:
        # Dynamic batching deals samples to optimizer steps by length, confession included: another deal, no leak.
        # With one step for all samples the gradients can be compared.
        small.train.batch_size = small.rollout.batch_size * group
    small.data.max_len = 64
    if getattr(small.reward, "overlong_buffer_len", None) is not None:
        small.reward.overlong_buffer_len, small.rollout.max_new_tokens = 3, 7  # some answers are too long
    small.actor.num_nodes = small.actor.num_gpus_per_node = 1
    small.actor.aux_loss_coef = 0.0  # the tiny model has no experts
    small.ds.ring_attn_size = small.ds.tensor_parallel_size = 1
    small.ds.packing_samples = False
    small.train.colocate_all = small.train.colocate_actor_ref = small.train.colocate_critic_reward = False
    small.critic.freezing_steps = -1
    return small


def describe(args: Any, config: Config) -> str:
    """The combination under check, in a few words."""
    kl = args.algo.kl
    parts = [
        args.algo.advantage.estimator,
        f"{args.actor.policy_loss_type}/{getattr(args.actor, 'loss_agg_mode', 'token-mean')}",
        "no KL" if kl.init_coef <= 0 else f"KL {kl.estimator} " + ("as loss" if kl.use_loss else "in reward"),
        config.answer_training,
    ]
    correction = getattr(args.algo.advantage, "is_correction_level", "off")
    if correction != "off":
        parts.append(f"importance correction {correction}")
    if args.critic.model_name_or_path:
        parts.append("critic")
    if args.train.dynamic_batch_enable:
        parts.append("dynamic batch")
    if config.samples_per_answer > 1:
        parts.append("several confessions an answer")
    return ", ".join(parts)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The host's progress bars and log lines would drown the one line of the check."""
    import tqdm  # type: ignore[import-untyped]

    def drop(record: Any) -> bool:
        return False

    talkers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("openrlhf")]
    original = tqdm.tqdm.__init__

    def disabled(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "disable": True})

    tqdm.tqdm.__init__ = disabled
    for talker in talkers:
        talker.addFilter(drop)
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = original
        for talker in talkers:
            talker.removeFilter(drop)


def largest_change(one: Sequence[dict[str, torch.Tensor]], other: Sequence[dict[str, torch.Tensor]]) -> float:
    """Largest difference of two lists of gradients, relative to the largest entry of `one`'s tensor; 0 for equal."""
    worst = 0.0
    nothing: dict[str, torch.Tensor] = {}
    for a, b in itertools.zip_longest(one, other, fillvalue=nothing):
        for name in a.keys() | b.keys():
            if name not in a or name not in b:
                return float("inf")
            scale = max(float(a[name].abs().max()), 1e-12)
            worst = max(worst, float((a[name] - b[name]).abs().max()) / scale)
    return worst
