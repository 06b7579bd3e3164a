"""A honesty channel of one-token confessions over the host's own estimators."""

from __future__ import annotations

import torch
from in_process import host_args

from confession_plugin.channels import HonestyChannel, TokenValues, keep
from confession_plugin.openrlhf.advantages import known_estimator


def host_baseline(estimator: str, rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """(N,) what the host's own code makes of these rewards (one token a sample, no KL)."""
    from types import SimpleNamespace

    from openrlhf.trainer.ppo_utils.experience import Experience
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    args = host_args("--algo.advantage.estimator", estimator)
    args.rollout.n_samples_per_prompt = group_size
    maker = RemoteExperienceMaker(
        None, None, None, None, SimpleNamespace(value=0.0), SimpleNamespace(args=args), SimpleNamespace(pad_token_id=0)
    )
    count = len(rewards)
    experience = Experience(
        action_mask=torch.ones(count, 1),
        rewards=rewards.clone(),
        kl=torch.zeros(count, 1),
        values=torch.zeros(count, 1),
        response_length=torch.ones(count),
        truncated=torch.zeros(count),
        index=list(range(count)),
    )
    maker.compute_advantages_and_returns([experience])
    return experience.advantages.squeeze(-1)


def channel_of(estimator: str, rewards: torch.Tensor, scored: torch.Tensor, group_size: int) -> HonestyChannel:
    """The channel of (N,) rewards and scored flags, as `confession_advantages` gets it."""
    masks = [scored.unsqueeze(-1)]

    def estimate(rewards: torch.Tensor, rows: torch.Tensor, size: int) -> TokenValues:
        values = torch.zeros(len(rewards), 1)
        values[rows, 0] = host_baseline(estimator, rewards[rows], size)
        values = keep(values, masks[0])
        return TokenValues([values], [values])

    return HonestyChannel(rewards, scored, masks, group_size, known_estimator(estimator), estimate)
