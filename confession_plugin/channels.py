"""Spans, masks and the two reward channels: pure torch, no host import.

One host sample holds ``prompt | answer | request | confession | padding``.  Its action mask marks answer and
confession tokens; the confession is its last `length` marked tokens.  Everything that separates the channels is
derived from that one number per sample:

    answer channel    task reward      answer span
    honesty channel   honesty reward   confession span

Shapes: B samples in a micro-batch, A action positions (sequence length - 1), N samples in the rollout batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

AnswerTraining = Literal["dual", "exclusive"]

Baseline = Literal["none", "group", "batch"]


@dataclass(frozen=True)
class Estimator:
    """What there is to know about a host's advantage estimator to run it on incomplete groups."""

    name: str
    """As the host's flags call it."""
    baseline: Baseline
    """The mean that a reward is compared with: none, its group's, or the whole batch's."""
    whitened: bool
    """Advantages are normalised over the tokens of the whole batch afterwards."""

    @property
    def separable(self) -> bool:
        """Groups do not see each other: a group of m < n scored members is simply a group of m."""
        return self.baseline == "group" and not self.whitened


@dataclass(frozen=True)
class Spans:
    """Where the confession lies in each sample.  All (B,)."""

    asked: Tensor
    """bool: the sample's group was chosen to confess."""
    length: Tensor
    """long: confession tokens at the end of the action mask; 0 without a confession."""
    scored: Tensor
    """bool: the confession has an honesty reward.  An unscored one is not trained."""

    def confession_mask(self, action_mask: Tensor) -> Tensor:
        """(B, A) bool: the confession's tokens, scored or not."""
        marked = action_mask.bool()
        # (B, A): 1 at the last action token, counting up leftward.
        from_end = marked.flip(-1).long().cumsum(-1).flip(-1)
        return marked & (from_end <= self.length.to(marked.device).unsqueeze(-1))

    def answer_mask(self, action_mask: Tensor) -> Tensor:
        """(B, A) bool: the answer's tokens."""
        return action_mask.bool() & ~self.confession_mask(action_mask)

    def trained_masks(self, action_mask: Tensor, answer_training: AnswerTraining) -> tuple[Tensor, Tensor]:
        """(B, A) bool each: the answer and the confession tokens that take gradients."""
        confession = self.confession_mask(action_mask)
        answer = action_mask.bool() & ~confession
        if answer_training == "exclusive":
            answer = answer & ~self.asked.to(answer.device).bool().unsqueeze(-1)
        return answer, confession & self.scored.to(confession.device).bool().unsqueeze(-1)


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """`values` on the mask, exact zeros elsewhere: whatever stands outside, NaN and inf included, cannot reach a sum.

    Multiplying by the mask would let ``nan * 0`` through; ``where`` also cuts the gradient.
    """
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


@dataclass(frozen=True)
class TokenValues:
    """Per-token results of one channel: one (B, A) float tensor per experience, zero outside the channel's mask."""

    advantages: Sequence[Tensor]
    """What the policy loss weighs each token by."""
    returns: Sequence[Tensor]
    """What a critic learns to predict; the host logs them without one, too."""


@dataclass(frozen=True)
class HonestyChannel:
    """The honesty channel of a rollout batch: all that the hook `confession_advantages` is given.

    Every tensor is a copy, and the answer's rewards, masks and advantages are not among them: whatever a plugin
    does with its arguments, the answer channel stays what the host computed.

    N confessions, members of a group side by side.  By default a group holds the confessions about the different
    answers to one prompt; with ``--confession.samples_per_answer`` K > 1 the K confessions about one answer.
    """

    rewards: Tensor
    """(N,) float32.  Meaningful where `scored`."""
    scored: Tensor
    """(N,) bool.  Samples that were not asked are not scored."""
    masks: Sequence[Tensor]
    """One (B, A) bool mask per experience: the tokens this channel trains."""
    group_size: int
    """Entries side by side that share a baseline."""
    estimator: Estimator
    """The run's own advantage estimator."""
    estimate: Callable[[Tensor, Tensor, int], TokenValues]
    """``estimate(rewards, rows, group_size)`` runs the host's own advantage code on the entries `rows` ((R,) long,
    groups of `group_size` side by side) with these (N,) rewards, on this channel's tokens."""


def merge(
    answer: TokenValues, honesty: TokenValues, answer_masks: Sequence[Tensor], honesty_masks: Sequence[Tensor]
) -> TokenValues:
    """Both channels' values on their own tokens, zero on every other."""

    def on_masks(of_answer: Sequence[Tensor], of_honesty: Sequence[Tensor]) -> list[Tensor]:
        parts = zip(of_answer, of_honesty, answer_masks, honesty_masks, strict=True)
        return [torch.where(on_answer, a, keep(h, on_confession)) for a, h, on_answer, on_confession in parts]

    return TokenValues(on_masks(answer.advantages, honesty.advantages), on_masks(answer.returns, honesty.returns))


def whole_batch(rewards: Tensor) -> Tensor:
    """(N,) long: every entry, in order."""
    return torch.arange(len(rewards))


def estimate_scored(honesty: HonestyChannel) -> TokenValues:
    """The host's estimator over the scored members of each group, as if the missing ones had never been sampled.

    What is computed when only m of a group's n confessions are scored (M in the whole batch), and what its policy
    gradient expects, given that a failure does not depend on the confession:

    * rloo: reward - mean of the other m - 1.  The true gradient.
    * dr_grpo: reward - mean of the m.  (m - 1) / m of the true gradient: the mean includes oneself.
    * group_norm: (reward - mean) / spread, both of the m.  What the host expects of groups of m; dividing by a random
      spread is biased there too.
    * reinforce_baseline: reward - mean of the m, then whitened over the scored tokens of the batch.  As dr_grpo,
      divided by the batch's spread.  (The host runs on n with the missing members at the mean of the m, which leaves
      that mean where it is; the whitening reads scored tokens only.)
    * flash_reinforce: reward - mean of the M.  (M - 1) / M of the true gradient.
    * reinforce: return, whitened over the scored tokens of the batch.  (M - 1) / M, divided by the batch's spread.
    * gae: advantage over the critic's values, whitened likewise.  Likewise.

    Each factor is the host's own for complete groups, at m in place of n.  A lone member (m = 1) of rloo, dr_grpo,
    group_norm or reinforce_baseline has nothing to be compared with and takes no gradient.

    Filling the gaps with 0 instead would drag the baseline down and lift every scored member, honest or not, for no
    reason but the judge's failures; and where failures depend on the confession it would teach which ones fail.
    """
    n, scored = honesty.group_size, honesty.scored
    by_group = scored.reshape(-1, n)  # (G, n)
    members = by_group.sum(-1)  # (G,)
    if honesty.estimator.separable:
        total = zeros_on(honesty.masks)
        for m in sorted(set(members.tolist()) - {0, 1}):
            chosen = by_group & (members == m).unsqueeze(-1)
            part = honesty.estimate(honesty.rewards, chosen.reshape(-1).nonzero().squeeze(-1), m)
            total = _add(total, part)
        return total
    # Groups with nothing to say, or nothing to be compared with, are left out of every mean.
    groups = members > (1 if honesty.estimator.baseline == "group" else 0)
    if not groups.any():
        return zeros_on(honesty.masks)
    kept = by_group & groups.unsqueeze(-1)
    rewards = honesty.rewards.reshape(-1, n)
    mean = _masked_mean(rewards, kept, None if honesty.estimator.baseline == "batch" else -1)
    filled = torch.where(kept, rewards, mean).reshape(-1)
    return honesty.estimate(filled, groups.repeat_interleave(n).nonzero().squeeze(-1), n)


def _masked_mean(values: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    """Mean over the mask along `dim` (kept as size 1), or over everything; 0 where the mask is empty."""
    if dim is None:
        return keep(values, mask).sum() / mask.sum().clamp(min=1)
    return keep(values, mask).sum(dim, keepdim=True) / mask.sum(dim, keepdim=True).clamp(min=1)


def zeros_on(masks: Sequence[Tensor]) -> TokenValues:
    """A channel that trains nothing: zeros of the masks' shapes."""
    zeros = [torch.zeros(mask.shape, dtype=torch.float32) for mask in masks]
    return TokenValues(zeros, [zero.clone() for zero in zeros])


def _add(one: TokenValues, other: TokenValues) -> TokenValues:
    return TokenValues(
        [a + b for a, b in zip(one.advantages, other.advantages, strict=True)],
        [a + b for a, b in zip(one.returns, other.returns, strict=True)],
    )
