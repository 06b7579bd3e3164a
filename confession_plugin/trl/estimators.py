"""The host's own advantage code, run on the honesty channel.

The host computes advantages in the middle of ``_generate_and_score_completions``, so that is what runs: on a copy of
the trainer that generates nothing, has no models, one reward function, and metrics of its own that are thrown away.

Shapes: N entries of the channel, R of them under estimation, A tokens of the longest confession.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from confession_plugin.channels import Estimator, TokenValues, keep

Host = Callable[[Any, Sequence[Any]], dict[str, Any]]
"""The host's ``_generate_and_score_completions``, given a trainer and its inputs."""


def estimator_of(trainer: Any) -> Estimator:
    """What there is to know about the trainer's advantages to run them on incomplete groups."""
    aggregation = getattr(trainer, "multi_objective_aggregation", "sum_then_normalize")
    whitened = trainer.scale_rewards == "batch" or aggregation != "sum_then_normalize"
    return Estimator(f"grpo, scale_rewards {trainer.scale_rewards}", baseline="group", whitened=whitened)


class HostEstimator:
    """The host's advantages on entries of the honesty channel.

    Args:
        scored: (N,) bool; an entry without a score is unscorable in the host's sense: out of every mean and spread.
        mask: (N, A) bool.
    """

    def __init__(self, host: Host, trainer: Any, scored: Tensor, mask: Tensor) -> None:
        self._host, self._trainer, self._scored, self._mask = host, trainer, scored, mask

    def estimate(self, rewards: Tensor, rows: Tensor, group_size: int) -> TokenValues:
        """`HonestyChannel.estimate`."""
        known = torch.where(self._scored[rows], rewards[rows], torch.nan)  # (R,)
        found = self._advantages(known, group_size).to("cpu", torch.float32)
        spread = []
        for values in (found, known.nan_to_num()):
            filled = torch.zeros(len(rewards), dtype=torch.float32).index_copy(0, rows, values)
            spread.append(keep(filled.unsqueeze(-1).expand(self._mask.shape), self._mask))
        return TokenValues([spread[0]], [spread[1]])

    def _advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        """(R,) advantages, groups of `group_size` side by side."""
        if not len(rewards):
            return rewards
        inputs = [{"prompt": ""} for _ in rewards]
        advantages: Tensor = self._host(_without_models(self._trainer, rewards, group_size), inputs)["advantages"]
        return advantages


def _without_models(trainer: Any, rewards: Tensor, group_size: int) -> Any:
    """A copy of the trainer on which the host's code does nothing but compute these rewards' advantages."""
    count, end = len(rewards), trainer._tokenizer.eos_token_id
    args = copy.copy(trainer.args)
    args.gradient_accumulation_steps = args.steps_per_generation * trainer.num_iterations  # no old log-probs
    mine = copy.copy(trainer)
    vars(mine).update(
        args=args,
        accelerator=_OneProcess(),
        model=_NoModel(),
        num_generations=group_size,
        beta=0.0,
        use_vllm=False,
        mask_truncated_completions=False,
        reward_funcs=[None],
        reward_func_names=["honesty"],
        reward_weights=torch.ones(1),
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _logs=_logs(),
        _pending_extra_logs=defaultdict(list),
        _pending_metrics=defaultdict(list),
        _generate=lambda prompts: ([[end]] * count, [[end]] * count, None, [""] * count, None, {}, None, []),
        _calculate_rewards=lambda *_: rewards.unsqueeze(-1),
    )
    return mine


class _NoModel(nn.Module):
    """Stands for the policy: in training, and without anything to run."""

    is_gradient_checkpointing = False


class _OneProcess(SimpleNamespace):
    """Stands for the accelerator: the entries of all processes are here already."""

    device = torch.device("cpu")
    process_index = 0
    num_processes = 1

    def gather(self, value: Any) -> Any:
        return value


def _logs() -> dict[str, Any]:
    texts: dict[str, Any] = {name: deque(maxlen=1) for name in ("images", "prompt", "completion", "advantages")}
    return {**texts, "rewards": defaultdict(deque), "extra": defaultdict(deque)}
