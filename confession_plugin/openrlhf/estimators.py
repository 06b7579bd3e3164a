"""One reward channel of a rollout batch, and the host's advantage code run on it.

Shapes: B samples of a micro-batch, R rows of an unfolded one (see `extra_confessions`), A action positions, N entries
of a channel: one for each sample of the rollout batch, or K for its K confessions.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from confession_plugin import session
from confession_plugin.channels import Estimator, TokenValues, keep, zeros_on
from confession_plugin.config import PREFIX as CLI
from confession_plugin.errors import HostError, PluginError
from confession_plugin.openrlhf.experiences import column, spans_of, step_view, take_rows
from confession_plugin.openrlhf.extra_confessions import EXTRA, extra_of, samples_of_extra

#: What each of the host's estimators compares a reward with, and whether it whitens.
ESTIMATORS: Mapping[str, Estimator] = {
    one.name: one
    for one in (
        Estimator("gae", baseline="none", whitened=True),
        Estimator("reinforce", baseline="none", whitened=True),
        Estimator("rloo", baseline="group", whitened=False),
        Estimator("reinforce_baseline", baseline="group", whitened=True),
        Estimator("group_norm", baseline="group", whitened=False),
        Estimator("dr_grpo", baseline="group", whitened=False),
        Estimator("flash_reinforce", baseline="batch", whitened=False),
    )
}


def known_estimator(name: str) -> Estimator:
    """The host's estimator of this name.

    Raises:
        HostError: one that this release does not know, and so cannot run on incomplete groups.
    """
    if name not in ESTIMATORS:
        raise HostError(
            f"--algo.advantage.estimator {name} is unknown to this release; give one of {', '.join(ESTIMATORS)}"
        )
    return ESTIMATORS[name]


def answer_entries(experience: Any) -> Tensor:
    """(R,) long: the answer channel's entry of each row of an unfolded micro-batch; -1 for extra rows."""
    extra = torch.full((len(extra_of(experience)),), -1)
    return torch.cat([torch.tensor(experience.index), extra])


def confession_entries(experience: Any, nested: int) -> Tensor:
    """(R,) long: the honesty channel's entry of each row: sample p has the entries p * nested and following."""
    index = torch.tensor(experience.index)
    counts = [len(of_one) for of_one in experience.info.get(EXTRA, ())]
    ranks = [rank for count in counts for rank in range(1, count + 1)]
    if max(counts, default=0) >= nested:
        raise PluginError(f"{max(counts) + 1} confessions about one answer, but {CLI}samples_per_answer is {nested}")
    extra = index[samples_of_extra(experience)] * nested + torch.tensor(ranks, dtype=torch.long)
    return torch.cat([index * nested, extra])


def _in_order(parts: list[Tensor], entries: list[Tensor], size: int) -> Tensor:
    """(size,): each micro-batch's values at their entries, 0 elsewhere."""
    flat = torch.cat(parts)
    ordered = torch.zeros(size, dtype=flat.dtype)
    ordered[torch.cat(entries)] = flat
    return ordered


@dataclass(frozen=True)
class Channel:
    """One reward channel of a rollout batch.  A host sample has one entry, in prompt order, or K of honesty."""

    rewards: Tensor
    """(N,) float32."""
    scored: Tensor
    """(N,) bool."""
    masks: Sequence[Tensor]
    """One (R, A) bool mask per unfolded micro-batch: the tokens this channel trains."""
    entries: Sequence[Tensor]
    """One (R,) long per unfolded micro-batch: the entry of each row, -1 for none."""
    group_size: int


def channels_of(maker: Any, experiences: Sequence[Any], rows: Sequence[Any]) -> tuple[Channel, Channel]:
    """The answer and the honesty channel of a rollout batch and its unfolded micro-batches."""
    config = session.config()
    spans = [spans_of(one) for one in rows]
    masks = [
        span.trained_masks(one.action_mask, config.answer_training) for span, one in zip(spans, rows, strict=True)
    ]
    samples, nested = sum(len(experience.index) for experience in experiences), config.samples_per_answer
    group_size: int = maker.strategy.args.rollout.n_samples_per_prompt
    answers = [answer_entries(experience) for experience in experiences]
    confessions = [confession_entries(experience, nested) for experience in experiences]
    answer = Channel(
        rewards=_in_order([one.rewards for one in experiences], [one[one >= 0] for one in answers], samples),
        scored=torch.ones(samples, dtype=torch.bool),
        masks=[answer_mask for answer_mask, _ in masks],
        entries=answers,
        group_size=group_size,
    )
    honesty = Channel(
        rewards=_in_order([column(one.info, "reward") for one in rows], confessions, samples * nested),
        scored=_in_order([span.scored for span in spans], confessions, samples * nested),
        masks=[confession_mask for _, confession_mask in masks],
        entries=confessions,
        group_size=group_size if nested == 1 else nested,
    )
    return answer, honesty


def without_outcomes(rows: Any) -> Any:
    """A copy of the micro-batch without what the host knows of its answers' rewards.

    The host reads lengths and truncation for the answer's penalties alone; there is one of each per row here.
    """
    count = len(rows.action_mask)
    tensors = {
        field.name: value.clone()
        for field in dataclasses.fields(rows)
        if rows.is_step_tensor_field(field.name) and (value := getattr(rows, field.name)) is not None
    }
    outcomes: dict[str, Any] = {"rewards": None, "scores": None, "total_length": None, "info": {}}
    lengths, truncated = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.bool)
    return dataclasses.replace(rows, **tensors, **outcomes, response_length=lengths, truncated=truncated)


_NO_PENALTIES = {"overlong_buffer_len": None, "stop_properly_penalty_coef": None}


def maker_for_honesty(maker: Any) -> Any:
    """The experience maker as the honesty channel has it: settings of its own without penalties, and no models.

    The penalties are switched off by these settings, not by empty lengths alone: whatever a penalty counts, it is the
    answer's.
    """
    mine = copy.copy(maker)
    mine.strategy = copy.copy(maker.strategy)
    mine.strategy.args = mine.args = copy.deepcopy(maker.strategy.args)
    for name, off in _NO_PENALTIES.items():
        setattr(mine.args.reward, name, off)
    mine.kl_ctl = copy.copy(maker.kl_ctl)
    mine.actor_model_group = mine.critic_model_group = mine.reward_model_group = mine.initial_model_group = None
    return mine


View = tuple[Any, int, Tensor]
"""What the host saw of a micro-batch, the micro-batch's number, and which (L,) of its rows took part."""


class HostEstimator:
    """The host's ``compute_advantages_and_returns`` on views of one channel."""

    def __init__(self, host: Any, maker: Any, rows: Sequence[Any], channel: Channel) -> None:
        self._host = host
        self._maker = maker
        self.rows = rows
        self.channel = channel
        self.estimator = known_estimator(maker.advantage_estimator)

    def run(self, rewards: Tensor, entries: Tensor, group_size: int | None = None) -> tuple[TokenValues, list[View]]:
        """The host's values on the channel's `entries` ((E,) long) with these (N,) rewards, zero elsewhere.

        `group_size`: entries side by side that share a baseline, in place of the run's own.
        """
        place = torch.full((len(rewards) + 1,), -1)  # where an entry stands among `entries`; last: no entry
        place[entries] = torch.arange(len(entries))
        views: list[View] = []
        for number, of_rows in enumerate(self.channel.entries):
            local = (place[of_rows] >= 0).nonzero().squeeze(-1)  # rows of this micro-batch that take part
            if len(local) == 0:
                continue
            view = self._view(number, rewards[of_rows].clone())
            if len(local) < len(of_rows):
                view = take_rows(view, local)
            view.index = place[of_rows[local]].tolist()
            views.append((view, number, local))
        self._host(self._maker_for(group_size), [view for view, _, _ in views])
        results = zeros_on(self.channel.masks)
        for view, number, local in views:
            on_mask = self.channel.masks[number][local]
            for filled, found in ((results.advantages, view.advantages), (results.returns, view.returns)):
                width = found.shape[-1]
                filled[number][local, :width] = keep(found.float(), on_mask[:, :width])
        return results, views

    def _maker_for(self, group_size: int | None) -> Any:
        """A copy of the experience maker, with another group size."""
        maker = copy.copy(self._maker)
        if group_size is not None:
            maker.strategy = copy.copy(maker.strategy)
            maker.strategy.args = maker.args = copy.copy(maker.args)
            maker.args.rollout = copy.copy(maker.args.rollout)
            maker.args.rollout.n_samples_per_prompt = group_size
        return maker

    def _view(self, number: int, rewards: Tensor) -> Any:
        rows, width = self.rows[number], None
        if rows.rewards is not None and rows.attention_mask is not None:
            # Answers: as wide as the host's batch would be without confessions.  Sums then run over the same numbers
            # in the same order, so that the answer's advantages are the stock run's to the last bit.
            width = int((rows.attention_mask.sum(-1) - column(rows.info, "suffix")).max()) - 1
        mask = self.channel.masks[number]
        return step_view(rows, mask, width, rewards=rewards, info=dict(rows.info))
