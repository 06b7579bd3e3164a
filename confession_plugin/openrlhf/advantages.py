"""Seam: OpenRLHF ``RemoteExperienceMaker``: forward passes and advantages.

* the reward model sees the answer only;
* KL and other logged means read the answer only;
* advantages are computed once per channel, by the host's own code on views, and merged on the masks.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from confession_plugin import session
from confession_plugin.channels import Estimator, HonestyChannel, TokenValues, keep, merge, whole_batch, zeros_on
from confession_plugin.config import PREFIX as CLI
from confession_plugin.errors import HostError, PluginError
from confession_plugin.openrlhf.experiences import PREFIX, answer_statistics, column, spans_of, step_view, take_rows
from confession_plugin.openrlhf.extra_confessions import EXTRA, extra_of, fold, samples_of_extra, unfold

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


def compute_advantages_and_returns(host: Any, self: Any, experiences: list[Any], *args: Any, **kwargs: Any) -> Any:
    """Advantages of the answer channel, then of the honesty channel (hook `confession_advantages`), merged.

    The answer channel is the host's code on the answers' own view and is finished before any plugin is asked; the
    plugin is handed copies of the honesty channel and nothing else.
    """
    rows = [unfold(experience) for experience in experiences]
    answers, honesty = channels_of(self, experiences, rows)
    of_answers = estimate_answers(HostEstimator(host, self, rows, answers))
    of_honesty = estimate_honesty(HostEstimator(host, self, [_without_outcomes(one) for one in rows], honesty))
    merged = merge(of_answers, of_honesty, answers.masks, honesty.masks)
    one: Any
    for experience, one, advantages, returns in zip(experiences, rows, merged.advantages, merged.returns, strict=True):
        one.advantages, one.returns = advantages, returns
        experience.rewards, experience.kl = one.rewards, None
        fold(experience, one, ("advantages", "returns"))
        experience.info |= {name: value for name, value in one.info.items() if not name.startswith(PREFIX)}
    return experiences


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
    channel, plugins = honesty.channel, session.plugins()
    if not torch.isfinite(channel.rewards[channel.scored]).all():
        raise PluginError("an honesty reward is not finite in float32; look at what gives it (confession_reward)")
    found = plugins.hook.confession_advantages(
        honesty=HonestyChannel(
            rewards=channel.rewards.clone(),
            scored=channel.scored.clone(),
            masks=[mask.clone() for mask in channel.masks],
            group_size=channel.group_size,
            estimator=honesty.estimator,
            estimate=lambda rewards, rows, group_size: _estimate_unpenalised(honesty, rewards, rows, group_size),
        )
    )
    _require_values(found, channel.masks, plugins.decided_by.get("confession_advantages"))
    return found


def _estimate_unpenalised(honesty: HostEstimator, rewards: Tensor, rows: Tensor, group_size: int) -> TokenValues:
    """`HonestyChannel.estimate`: without the host's length and truncation penalties, which are the answer's.

    Raises:
        HostError: the host changed an honesty reward all the same.
    """
    rewards = rewards.to(torch.float32)
    values, views = honesty.run(rewards, rows, honesty.without_penalties(group_size))
    for view, number, local in views:
        given = rewards[honesty.channel.entries[number][local]]
        if not torch.equal(view.rewards.nan_to_num(), given.nan_to_num()):
            raise HostError(
                "OpenRLHF changed an honesty reward before computing advantages: a penalty that this release does not "
                "know; leave out the --reward.* penalties of this run"
            )
    return values


def _require_values(found: Any, masks: Sequence[Tensor], plugin: str | None) -> None:
    """One finite (B, A) tensor per experience.

    Raises:
        PluginError: something else; names the plugin.
    """
    if found is None:
        raise PluginError("no plugin gave advantages: all that implement confession_advantages gave None")
    if not isinstance(found, TokenValues):  # a wrapper's word, which nothing has checked
        raise PluginError(f"confession_advantages gave {type(found).__name__}; give the honesty channel's TokenValues")
    for name in ("advantages", "returns"):
        values: Sequence[Tensor] = getattr(found, name)
        if [value.shape for value in values] != [mask.shape for mask in masks]:
            raise PluginError(
                f"plugin {plugin!r}: confession_advantages gave {name} of other shapes than honesty.masks; give one "
                "(B, A) tensor for each mask"
            )
        if not all(torch.isfinite(value[mask]).all() for value, mask in zip(values, masks, strict=True)):
            raise PluginError(f"plugin {plugin!r}: confession_advantages gave {name} that are not finite")


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


def _without_outcomes(rows: Any) -> Any:
    """The micro-batch without what the host knows of its answers' rewards.

    The host reads lengths and truncation for the answer's penalties alone; there is one of each per row here.
    """
    count = len(rows.action_mask)
    return dataclasses.replace(
        rows,
        rewards=None,
        scores=None,
        total_length=None,
        response_length=torch.zeros(count, dtype=torch.long),
        truncated=torch.zeros(count, dtype=torch.bool),
        info={name: value for name, value in rows.info.items() if name.startswith(PREFIX)},
    )


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

    def run(self, rewards: Tensor, entries: Tensor, maker: Any = None) -> tuple[TokenValues, list[View]]:
        """The host's values on the channel's `entries` ((E,) long) with these (N,) rewards, zero elsewhere."""
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
        self._host(maker or copy.copy(self._maker), [view for view, _, _ in views])
        results = zeros_on(self.channel.masks)
        for view, number, local in views:
            on_mask = self.channel.masks[number][local]
            for filled, found in ((results.advantages, view.advantages), (results.returns, view.returns)):
                width = found.shape[-1]
                filled[number][local, :width] = keep(found.float(), on_mask[:, :width])
        return results, views

    def without_penalties(self, group_size: int) -> Any:
        """The experience maker with other settings: shallow copies down to the changed ones."""
        maker = copy.copy(self._maker)
        args = SimpleNamespace(**vars(maker.strategy.args))
        args.rollout = SimpleNamespace(**{**vars(args.rollout), "n_samples_per_prompt": group_size})
        args.reward = SimpleNamespace(**{**vars(args.reward), **_NO_PENALTIES})
        maker.strategy = copy.copy(maker.strategy)
        maker.strategy.args = maker.args = args
        return maker

    def _view(self, number: int, rewards: Tensor) -> Any:
        rows, width = self.rows[number], None
        if rows.rewards is not None and rows.attention_mask is not None:
            # Answers: as wide as the host's batch would be without confessions.  Sums then run over the same numbers
            # in the same order, so that the answer's advantages are the stock run's to the last bit.
            width = int((rows.attention_mask.sum(-1) - column(rows.info, "suffix")).max()) - 1
        mask = self.channel.masks[number]
        return step_view(rows, mask, width, rewards=rewards, info=dict(rows.info))


_NO_PENALTIES = {"overlong_buffer_len": None, "stop_properly_penalty_coef": None}
