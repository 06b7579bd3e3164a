"""Seam: OpenRLHF ``RemoteExperienceMaker``: forward passes and advantages.

* the reward model sees the answer only;
* KL and other logged means read the answer only;
* advantages are computed once per channel, by the host's own code on views, and merged on the masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from confession_plugin import session, unsealed
from confession_plugin.channels import HonestyChannel, TokenValues, merge, whole_batch
from confession_plugin.errors import HostError
from confession_plugin.honesty import honesty_values
from confession_plugin.openrlhf.estimators import (
    Channel,
    HostEstimator,
    channels_of,
    known_estimator,
    maker_for_honesty,
    without_outcomes,
)
from confession_plugin.openrlhf.experiences import PREFIX, answer_statistics, column
from confession_plugin.openrlhf.extra_confessions import fold, unfold

__all__ = ["compute_advantages_and_returns", "known_estimator", "make_experience"]


def make_experience(host: Any, self: Any, samples_list: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
    """Forward passes on whole samples, except the reward model's, which ends with the answer."""
    whole_group = self.reward_model_group
    if whole_group is not None:
        self.reward_model_group = AnswerOnlyRewardModel(whole_group, samples_list, self.tokenizer.pad_token_id)
    rows = [unfold(samples) for samples in samples_list]
    try:
        with answer_statistics(rows):
            made: list[Any] = host(self, rows, *args, **kwargs)
    finally:
        self.reward_model_group = whole_group
    return [_samples_of(samples, one) for samples, one in zip(samples_list, made, strict=True)]


def _samples_of(samples: Any, rows: Any) -> Any:
    """What the forward passes wrote, on the samples and their extra rows."""
    if rows is samples:
        return samples
    fold(samples, rows, ("action_log_probs", "base_action_log_probs", "values", "kl"))
    samples.rewards = rows.rewards
    for name, value in rows.info.items():
        if not name.startswith(PREFIX):
            samples.info[name] = value[: len(samples.sequences)]
    return samples


class AnswerOnlyRewardModel:
    """Stands before the host's reward model group: cuts request and confession off what it is shown.

    What is left is exactly the batch the host would have built from the answers alone.
    """

    def __init__(self, group: Any, samples_list: Sequence[Any], pad_token_id: int) -> None:
        self._group = group
        self._suffixes = [column(samples.info, "suffix") for samples in samples_list]
        self._pad = pad_token_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def async_run_method_batch(
        self, method_name: str, *, sequences: list[Tensor], attention_mask: list[Tensor], **kwargs: Any
    ) -> Any:
        cut = [  # extra rows, which stand behind the samples, repeat their answers
            answer_only(tokens[: len(suffix)], mask[: len(suffix)], suffix, self._pad)
            for tokens, mask, suffix in zip(sequences, attention_mask, self._suffixes, strict=True)
        ]
        return self._group.async_run_method_batch(
            method_name, sequences=[tokens for tokens, _ in cut], attention_mask=[mask for _, mask in cut], **kwargs
        )


def answer_only(tokens: Tensor, attention: Tensor, suffix: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Cut the last `suffix` (B,) attended tokens off a right-padded batch (B, T); T shrinks to the longest answer."""
    lengths = attention.sum(-1) - suffix  # (B,)
    kept = torch.arange(tokens.shape[-1]) < lengths.unsqueeze(-1)  # (B, T)
    longest = int(lengths.max())
    attended = torch.where(kept, attention, torch.zeros_like(attention))[:, :longest]
    return torch.where(kept, tokens, torch.full_like(tokens, pad))[:, :longest], attended


def compute_advantages_and_returns(host: Any, self: Any, experiences: list[Any], *args: Any, **kwargs: Any) -> Any:
    """Advantages of the answer channel, then of the honesty channel (hook `confession_advantages`), merged.

    The answer channel is the host's code on the answers' own view and is finished before any plugin is asked; the
    plugin is handed copies of the honesty channel and nothing else.
    """
    rows = [unfold(experience) for experience in experiences]
    before = [dict(experience.info) for experience in experiences]
    answers, honesty = coupled(*channels_of(self, experiences, rows), experiences)
    of_answers = estimate_answers(HostEstimator(host, self, rows, answers))
    copies = [without_outcomes(one) for one in rows]
    of_honesty = estimate_honesty(HostEstimator(host, maker_for_honesty(self), copies, honesty))
    merged = merge(of_answers, of_honesty, answers.masks, honesty.masks)
    one: Any
    for experience, one, advantages, returns in zip(experiences, rows, merged.advantages, merged.returns, strict=True):
        one.advantages, one.returns = advantages, returns
        experience.rewards, experience.kl = one.rewards, None
        fold(experience, one, ("advantages", "returns"))
        experience.info |= {name: value for name, value in one.info.items() if not name.startswith(PREFIX)}
    if session.config().unsealed_coupling is not None:
        for experience, logged in zip(experiences, before, strict=True):
            say_unsealed(experience.info, logged)
    return experiences


def coupled(answers: Channel, honesty: Channel, experiences: Sequence[Any]) -> tuple[Channel, Channel]:
    """The channels as they are; with ``--confession.unsealed_coupling`` their rewards as its file rewrites them."""
    coupling = unsealed.coupling_of(session.config())
    if coupling is None:
        return answers, honesty
    order = torch.cat([torch.tensor(one.index) for one in experiences]).argsort()
    admits = torch.cat([column(one.info, "admits") for one in experiences])[order]
    of_answers, of_honesty = coupling(answers.rewards, honesty.rewards, honesty.scored, admits)
    for one in experiences:
        one.info[f"{unsealed.LABEL}/answer_reward"] = of_answers[torch.tensor(one.index)]
    return replace(answers, rewards=of_answers), replace(honesty, rewards=of_honesty)


def say_unsealed(info: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Whatever the host wrote into the info while it computed on coupled rewards goes by a name that says so.

    The host logs the info's entries.  What stood there before, such as the task reward, stands there again.
    """
    for name in [name for name, value in info.items() if not name.startswith((PREFIX, unsealed.LABEL))]:
        if before.get(name) is not info[name]:
            info[f"{unsealed.LABEL}/{name}"] = info.pop(name)
    info.update({name: value for name, value in before.items() if name not in info})


def estimate_answers(answers: HostEstimator) -> TokenValues:
    """The host's code on the answers, and what it logs of them, as in a run without confessions."""
    values, views = answers.run(answers.channel.rewards, whole_batch(answers.channel.rewards))
    # The answer channel's penalised rewards and logged numbers are the ones the host would have written.
    for view, number, _ in views:
        answers.rows[number].rewards = view.rewards
        answers.rows[number].info |= view.info
    return values


def estimate_honesty(honesty: HostEstimator) -> TokenValues:
    """What the plugins make of the honesty channel.

    Raises:
        PluginError: an honesty reward, or what a plugin gave, is not finite in float32 or has another shape.
    """
    channel = honesty.channel
    return honesty_values(
        session.plugins(),
        HonestyChannel(
            rewards=channel.rewards,
            scored=channel.scored,
            masks=channel.masks,
            group_size=channel.group_size,
            estimator=honesty.estimator,
            estimate=lambda rewards, rows, group_size: _estimate_unpenalised(honesty, rewards, rows, group_size),
        ),
    )


def _estimate_unpenalised(honesty: HostEstimator, rewards: Tensor, rows: Tensor, group_size: int) -> TokenValues:
    """`HonestyChannel.estimate`: without the host's length and truncation penalties, which are the answer's.

    Raises:
        HostError: the host changed an honesty reward all the same.
    """
    values, views = honesty.run(rewards, rows, group_size)
    for view, number, local in views:
        given = rewards[honesty.channel.entries[number][local]]
        if not torch.equal(view.rewards.nan_to_num(), given.nan_to_num()):
            raise HostError(
                "OpenRLHF changed an honesty reward before computing advantages: a penalty that this release does not "
                "know; leave out the --reward.* penalties of this run"
            )
    return values
