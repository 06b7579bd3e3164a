"""Seam: OpenRLHF ``RemoteExperienceMaker``: forward passes and advantages.

* the reward model sees the answer only;
* KL and other logged means read the answer only;
* advantages are computed once per channel, by the host's own code on views, and merged on the masks.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from confession_plugin.channels import Channel, TokenValues, TwoChannelBatch, keep
from confession_plugin.errors import PluginError
from confession_plugin.openrlhf import session
from confession_plugin.openrlhf.experiences import answer_statistics, column, spans_of, step_view, take_rows

logger = logging.getLogger(__name__)


def make_experience(host: Any, self: Any, samples_list: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
    """Forward passes on whole samples, except the reward model's, which ends with the answer."""
    whole_group = self.reward_model_group
    if whole_group is not None:
        self.reward_model_group = AnswerOnlyRewardModel(whole_group, samples_list, self.tokenizer.pad_token_id)
    try:
        with answer_statistics(samples_list):
            result: list[Any] = host(self, samples_list, *args, **kwargs)
            return result
    finally:
        self.reward_model_group = whole_group


class AnswerOnlyRewardModel:
    """Stands before the host's reward model group: cuts request and confession off what it is shown.

    What is left is exactly the batch the host would have built from the answers alone.
    """

    def __init__(self, group: Any, samples_list: Sequence[Any], pad_token_id: int) -> None:
        self._group = group
        self._tails = [column(samples.info, "tail") for samples in samples_list]
        self._pad = pad_token_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def async_run_method_batch(
        self, method_name: str, *, sequences: list[Tensor], attention_mask: list[Tensor], **kwargs: Any
    ) -> Any:
        cut = [
            answer_only(tokens, mask, tail, self._pad)
            for tokens, mask, tail in zip(sequences, attention_mask, self._tails, strict=True)
        ]
        return self._group.async_run_method_batch(
            method_name, sequences=[tokens for tokens, _ in cut], attention_mask=[mask for _, mask in cut], **kwargs
        )


def answer_only(tokens: Tensor, attention: Tensor, tail: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Cut the last `tail` (B,) attended tokens off a right-padded batch (B, T); T shrinks to the longest answer."""
    lengths = attention.sum(-1) - tail  # (B,)
    kept = torch.arange(tokens.shape[-1]) < lengths.unsqueeze(-1)  # (B, T)
    longest = int(lengths.max())
    attended = torch.where(kept, attention, torch.zeros_like(attention))[:, :longest]
    return torch.where(kept, tokens, torch.full_like(tokens, pad))[:, :longest], attended


def compute_advantages_and_returns(host: Any, self: Any, experiences: list[Any], *args: Any, **kwargs: Any) -> Any:
    """Per-channel advantages (hook `confession_advantages`), merged on the masks."""
    config = session.config()
    spans = [spans_of(experience) for experience in experiences]
    masks = [
        span.trained_masks(one.action_mask, config.answer_training)
        for span, one in zip(spans, experiences, strict=True)
    ]
    order = torch.tensor([index for experience in experiences for index in experience.index])

    def in_prompt_order(parts: list[Tensor]) -> Tensor:
        flat = torch.cat(parts)
        sorted_ = torch.empty_like(flat)
        sorted_[order] = flat
        return sorted_

    answer = Channel(
        rewards=in_prompt_order([experience.rewards for experience in experiences]),
        scored=torch.ones(len(order), dtype=torch.bool),
        masks=[answer_mask for answer_mask, _ in masks],
    )
    honesty = Channel(
        rewards=in_prompt_order([column(experience.info, "reward") for experience in experiences]),
        scored=in_prompt_order([span.scored for span in spans]),
        masks=[confession_mask for _, confession_mask in masks],
    )
    estimator = HostEstimator(host, self, experiences, answer)
    batch = TwoChannelBatch(
        estimator=self.advantage_estimator,
        group_size=self.args.rollout.n_samples_per_prompt,
        answer=answer,
        honesty=honesty,
        estimate=estimator,
    )
    merged = session.plugins().hook.confession_advantages(batch=batch)
    if merged is None or merged.merged is None or not estimator.answered:
        raise PluginError("confession_advantages must estimate the answer channel and return batch.merge(...)")
    for experience, advantages, returns in zip(
        experiences, merged.merged.advantages, merged.merged.returns, strict=True
    ):
        experience.advantages, experience.returns, experience.kl = advantages, returns, None
    return experiences


class HostEstimator:
    """`TwoChannelBatch.estimate`: the host's ``compute_advantages_and_returns`` on views of one channel."""

    def __init__(self, host: Any, maker: Any, experiences: list[Any], answer: Channel) -> None:
        self._host = host
        self._maker = maker
        self._experiences = experiences
        self._answer = answer
        self.answered = False

    def __call__(self, channel: Channel, rows: Tensor, group_size: int) -> TokenValues:
        place = torch.full((len(channel.rewards),), -1)  # (N,): where a sample stands among `rows`
        place[rows] = torch.arange(len(rows))
        views, sources = [], []
        for number, experience in enumerate(self._experiences):
            index = torch.tensor(experience.index)
            local = (place[index] >= 0).nonzero().squeeze(-1)  # rows of this micro-batch that take part
            if len(local) == 0:
                continue
            view = self._view(channel, number, index)
            if len(local) < len(index):
                view = take_rows(view, local)
            view.index = place[index[local]].tolist()
            views.append(view)
            sources.append((number, local))
        self._host(self._with_group_size(group_size), views)
        if channel is self._answer:
            self._write_back(views, sources)
        results = TokenValues(
            [torch.zeros(mask.shape, dtype=torch.float32) for mask in channel.masks],
            [torch.zeros(mask.shape, dtype=torch.float32) for mask in channel.masks],
        )
        for view, (number, local) in zip(views, sources, strict=True):
            on_mask = channel.masks[number][local]
            for filled, found in ((results.advantages, view.advantages), (results.returns, view.returns)):
                width = found.shape[-1]
                filled[number][local, :width] = keep(found.float(), on_mask[:, :width])
        return results

    def _view(self, channel: Channel, number: int, index: Tensor) -> Any:
        experience = self._experiences[number]
        changes: dict[str, Any] = {"rewards": channel.rewards[index].clone(), "info": dict(experience.info)}
        width = None
        if channel is self._answer:
            # As wide as the host's batch would be without confessions: sums then run over the same numbers in the
            # same order, so that the answer's advantages are the stock run's to the last bit.
            width = int((experience.total_length - column(experience.info, "tail")).max()) - 1
        else:
            # The length penalties and the truncation penalty are the answer's; a confession has neither.
            changes["response_length"] = torch.zeros_like(experience.response_length)
            changes["truncated"] = torch.zeros_like(experience.truncated)
        return step_view(experience, channel.masks[number], width, **changes)

    def _with_group_size(self, group_size: int) -> Any:
        """The experience maker with another group size: shallow copies down to the one changed setting."""
        maker = copy.copy(self._maker)
        if group_size == maker.args.rollout.n_samples_per_prompt:
            return maker
        args = SimpleNamespace(**vars(maker.args))
        args.rollout = SimpleNamespace(**{**vars(maker.args.rollout), "n_samples_per_prompt": group_size})
        maker.strategy = copy.copy(maker.strategy)
        maker.strategy.args = maker.args = args
        return maker

    def _write_back(self, views: list[Any], sources: list[tuple[int, Tensor]]) -> None:
        """The answer channel's penalised rewards and logged numbers are the ones the host would have written."""
        self.answered = True
        for view, (number, local) in zip(views, sources, strict=True):
            experience = self._experiences[number]
            if len(local) == len(experience.index):
                experience.rewards, experience.info = view.rewards, view.info
