"""One rollout batch through the host, on the run's flags at the size of a check."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from confession_plugin.config import Config
from confession_plugin.openrlhf.check import simulator
from confession_plugin.openrlhf.extra_confessions import unfold

#: What the host reads off a sample besides its tokens: rewards, dynamic filtering, length penalties, truncation.
OUTCOMES = ("rewards", "scores", "response_length", "truncated")


@dataclass(frozen=True)
class Pass:
    """One rollout batch through the host: samples, experiences, gradients."""

    outcomes: list[dict[str, torch.Tensor]]
    """What the host reads off each sample besides its tokens."""
    shaped: dict[str, torch.Tensor]
    """Task rewards after reward model and penalties, and the mean KL of the answers, (N,) in prompt order."""
    experiences: list[Any]
    trained: simulator.Trained
    rollout_stats: dict[str, float]


def one_pass(
    args: Any,
    responses: list[Any],
    *,
    scores: simulator.Scores | None = None,
    trains: Callable[[int], bool] | None = None,
    train: bool = True,
) -> Pass:
    """One batch under the seams now in place.

    Args:
        scores: in place of the reward model's.
        trains: which samples take part in the training steps; rollout micro-batches must be of one sample.
        train: go on to the training steps.
    """
    bench = simulator.Simulator(args, scores=scores)
    samples = bench.samples(responses)
    seen = [
        {name: getattr(sample, name).clone() for name in OUTCOMES if getattr(sample, name) is not None}
        | {"clipped": sample.info["response_clip_ratio"].clone()}
        for sample in samples
    ]
    experiences = bench.experiences(samples)
    rewards = torch.cat([one.rewards for one in experiences])
    order = torch.tensor([index for one in experiences for index in one.index]).argsort()
    shaped = {"rewards": rewards[order], "kl": torch.cat([one.info["kl"] for one in experiences])[order]}
    if trains is not None:
        experiences = [one for one in experiences if trains(one.index[0])]
    trained = bench.train(experiences) if train else simulator.Trained([], [])
    # Unfolded: every confession is a row of what the masks and differences look at.
    return Pass(seen, shaped, [unfold(one) for one in experiences], trained, bench.rollout_stats)


def masks_of(passed: Pass, config: Config, *, answer: bool = False) -> list[torch.Tensor]:
    """(B, A) bool per experience: the tokens one channel trains."""
    from confession_plugin.openrlhf.experiences import spans_of

    return [
        spans_of(one).trained_masks(one.action_mask, config.answer_training)[0 if answer else 1]
        for one in passed.experiences
    ]


def shrunk(args: Any) -> Any:
    """The run's flags at the size of a check: few short samples, one process, nothing that needs a GPU."""
    small = copy.deepcopy(args)
    group = min(args.rollout.n_samples_per_prompt, 4)
    micro = 3 if group == 3 else 4
    small.rollout.n_samples_per_prompt = group
    small.rollout.batch_size = 4 * micro // group
    small.rollout.micro_batch_size = micro
    small.rollout.max_tokens_per_gpu = small.train.max_tokens_per_gpu = 64
    # Two optimizer steps of two micro-batches each.
    small.train.batch_size, small.train.micro_batch_size, small.train.max_epochs = 2 * micro, micro, 1
    if args.train.dynamic_batch_enable:
        # Dynamic batching deals samples to optimizer steps by length, confession included: another deal, no leak.
        # With one step for all samples the gradients can be compared.
        small = one_step(small)
    small.data.max_len = 64
    if getattr(small.reward, "overlong_buffer_len", None) is not None:
        small.reward.overlong_buffer_len, small.rollout.max_new_tokens = 3, 7  # some answers are too long
    small.actor.num_nodes = small.actor.num_gpus_per_node = 1
    small.actor.aux_loss_coef = 0.0  # the tiny model has no experts
    small.ds.ring_attn_size = small.ds.tensor_parallel_size = 1
    small.ds.packing_samples = False
    small.train.colocate_all = small.train.colocate_actor_ref = small.train.colocate_critic_reward = False
    small.critic.freezing_steps = -1
    if small.algo.kl.target:
        small.algo.kl.target = 0.03  # about the tiny models' KL: elsewhere an adaptive controller only clips
    return small


def one_step(small: Any, samples: int | None = None) -> Any:
    """The same flags with one optimizer step over all samples of the batch."""
    whole = copy.deepcopy(small)
    whole.train.batch_size = samples or small.rollout.batch_size * small.rollout.n_samples_per_prompt
    return whole


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The host's progress bars and log lines would drown the one line of the check."""
    import openrlhf.trainer.ppo_trainer
    import openrlhf.trainer.ray.ppo_actor  # noqa: F401  the host's loggers exist from here on
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
