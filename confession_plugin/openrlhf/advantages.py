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
from confession_plugin.config import PREFIX as CLI
from confession_plugin.errors import PluginError
from confession_plugin.openrlhf import session
from confession_plugin.openrlhf.experiences import PREFIX, answer_statistics, column, spans_of, step_view, take_rows
from confession_plugin.openrlhf.siblings import SIBLINGS, fold, samples_of_siblings, siblings_of, unfold

logger = logging.getLogger(__name__)


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
    """What the forward passes wrote, on the samples and their siblings."""
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
        self._tails = [column(samples.info, "tail") for samples in samples_list]
        self._pad = pad_token_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def async_run_method_batch(
        self, method_name: str, *, sequences: list[Tensor], attention_mask: list[Tensor], **kwargs: Any
    ) -> Any:
        cut = [  # siblings, which stand behind the samples, repeat their answers
            answer_only(tokens[: len(tail)], mask[: len(tail)], tail, self._pad)
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
    rows = [unfold(experience) for experience in experiences]
    spans = [spans_of(one) for one in rows]
    masks = [
        span.trained_masks(one.action_mask, config.answer_training) for span, one in zip(spans, rows, strict=True)
    ]
    samples = sum(len(experience.index) for experience in experiences)
    nested = config.samples_per_answer
    answers = [answer_entries(experience) for experience in experiences]
    confessions = [confession_entries(experience, nested) for experience in experiences]
    group_size: int = self.args.rollout.n_samples_per_prompt
    answer = Channel(
        rewards=_in_order([one.rewards for one in experiences], [one[one >= 0] for one in answers], samples),
        scored=torch.ones(samples, dtype=torch.bool),
        masks=[answer_mask for answer_mask, _ in masks],
        group_size=group_size,
    )
    honesty = Channel(
        rewards=_in_order([column(one.info, "reward") for one in rows], confessions, samples * nested),
        scored=_in_order([span.scored for span in spans], confessions, samples * nested),
        masks=[confession_mask for _, confession_mask in masks],
        group_size=group_size if nested == 1 else nested,
    )
    estimator = HostEstimator(host, self, rows, answer, answers, confessions)
    batch = TwoChannelBatch(estimator=self.advantage_estimator, answer=answer, honesty=honesty, estimate=estimator)
    merged = session.plugins().hook.confession_advantages(batch=batch)
    if merged is None or merged.merged is None or not estimator.answered:
        raise PluginError("confession_advantages must estimate the answer channel and return batch.merge(...)")
    one: Any
    for experience, one, advantages, returns in zip(
        experiences, rows, merged.merged.advantages, merged.merged.returns, strict=True
    ):
        one.advantages, one.returns = advantages, returns
        experience.rewards, experience.kl = one.rewards, None
        fold(experience, one, ("advantages", "returns"))
        experience.info |= {name: value for name, value in one.info.items() if not name.startswith(PREFIX)}
    return experiences


def answer_entries(experience: Any) -> Tensor:
    """(R,) long: the answer channel's entry of each row of an unfolded micro-batch; -1 for siblings."""
    siblings = torch.full((len(siblings_of(experience)),), -1)
    return torch.cat([torch.tensor(experience.index), siblings])


def confession_entries(experience: Any, nested: int) -> Tensor:
    """(R,) long: the honesty channel's entry of each row: sample p has the entries p * nested and following."""
    index = torch.tensor(experience.index)
    counts = [len(of_one) for of_one in experience.info.get(SIBLINGS, ())]
    ranks = [rank for count in counts for rank in range(1, count + 1)]
    if max(counts, default=0) >= nested:
        raise PluginError(f"{max(counts) + 1} confessions about one answer, but {CLI}samples_per_answer is {nested}")
    siblings = index[samples_of_siblings(experience)] * nested + torch.tensor(ranks, dtype=torch.long)
    return torch.cat([index * nested, siblings])


def _in_order(parts: list[Tensor], entries: list[Tensor], size: int) -> Tensor:
    """(size,): each micro-batch's values at their entries, 0 elsewhere."""
    flat = torch.cat(parts)
    ordered = torch.zeros(size, dtype=flat.dtype)
    ordered[torch.cat(entries)] = flat
    return ordered


class HostEstimator:
    """`TwoChannelBatch.estimate`: the host's ``compute_advantages_and_returns`` on views of one channel.

    `answers`, `confessions`: for each unfolded micro-batch, the (R,) entries of its rows in either channel.
    """

    def __init__(
        self,
        host: Any,
        maker: Any,
        experiences: list[Any],
        answer: Channel,
        answers: list[Tensor],
        confessions: list[Tensor],
    ) -> None:
        self._host = host
        self._maker = maker
        self._experiences = experiences
        self._answer = answer
        self._answers = answers
        self._confessions = confessions
        self.answered = False

    def __call__(self, channel: Channel, rows: Tensor, group_size: int) -> TokenValues:
        place = torch.full((len(channel.rewards) + 1,), -1)  # where an entry stands among `rows`; last: no entry
        place[rows] = torch.arange(len(rows))
        entries = self._answers if channel is self._answer else self._confessions
        views, sources = [], []
        for number, entry in enumerate(entries):
            local = (place[entry] >= 0).nonzero().squeeze(-1)  # rows of this micro-batch that take part
            if len(local) == 0:
                continue
            view = self._view(channel, number, entry)
            if len(local) < len(entry):
                view = take_rows(view, local)
            view.index = place[entry[local]].tolist()
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

    def _view(self, channel: Channel, number: int, entry: Tensor) -> Any:
        experience = self._experiences[number]
        changes: dict[str, Any] = {"rewards": channel.rewards[entry].clone(), "info": dict(experience.info)}
        width = None
        if channel is self._answer:
            # As wide as the host's batch would be without confessions: sums then run over the same numbers in the
            # same order, so that the answer's advantages are the stock run's to the last bit.
            width = int((experience.attention_mask.sum(-1) - column(experience.info, "tail")).max()) - 1
        else:
            # The length penalties and the truncation penalty are the answer's; a confession has neither.
            changes["response_length"] = torch.zeros(len(entry), dtype=experience.response_length.dtype)
            changes["truncated"] = torch.zeros(len(entry), dtype=experience.truncated.dtype)
            changes["scores"] = changes["total_length"] = None
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
                experience.rewards = view.rewards
                experience.info |= view.info
