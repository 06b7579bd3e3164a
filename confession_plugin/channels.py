"""Spans, masks and the two reward channels: pure torch, no host import.

One host sample holds ``prompt | answer | request | confession | padding``.  Its action mask marks answer and
confession tokens; the confession is its last `length` marked tokens.  Everything that separates the channels is
derived from that one number per sample:

    answer channel    task reward      answer tokens
    honesty channel   honesty reward   confession tokens

Shapes: B samples in a micro-batch, A action positions (sequence length - 1), N samples in the rollout batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

AnswerTraining = Literal["dual", "exclusive"]

#: Estimators whose groups do not see each other: a group of m < n scored members is simply a group of m.
SEPARABLE = frozenset({"rloo", "group_norm", "dr_grpo"})


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
class Channel:
    """One reward channel of a rollout batch."""

    rewards: Tensor
    """(N,) float32 in prompt order, members of a group side by side.  Meaningful where `scored`."""
    scored: Tensor
    """(N,) bool."""
    masks: Sequence[Tensor]
    """One (B, A) bool mask per experience: the tokens this channel trains."""
    group_size: int
    """Entries side by side that share a baseline: the samples of a prompt, or the confessions about one answer."""


@dataclass(frozen=True)
class TokenValues:
    """Per-token results of one channel: one (B, A) float tensor per experience, zero outside the channel's mask."""

    advantages: Sequence[Tensor]
    returns: Sequence[Tensor]


@dataclass(frozen=True)
class TwoChannelBatch:
    """A rollout batch as the hook `confession_advantages` sees it.

    ``estimate(channel, rows, group_size)`` runs the host's own advantage code (OpenRLHF:
    ``RemoteExperienceMaker.compute_advantages_and_returns``) on the entries ``rows`` ((R,) long, in prompt order,
    groups of ``group_size`` side by side) of a channel, with its rewards on its tokens.

    The honesty channel has as many entries as the answer channel, and its groups: confessions about the different
    answers to one prompt.  With ``--confession.samples_per_answer`` K > 1 it has K entries an answer, and its groups
    are the K confessions about one answer.
    """

    estimator: str
    answer: Channel
    honesty: Channel
    estimate: Callable[[Channel, Tensor, int], TokenValues]
    merged: TokenValues | None = None

    def merge(self, answer: TokenValues, honesty: TokenValues) -> TwoChannelBatch:
        """The finished batch: each channel's values on its own tokens, zero on every other."""

        def on_masks(name: str) -> list[Tensor]:
            pairs = zip(getattr(answer, name), getattr(honesty, name), strict=True)
            masks = zip(self.answer.masks, self.honesty.masks, strict=True)
            return [
                torch.where(on_answer, a, keep(h, on_confession))
                for (a, h), (on_answer, on_confession) in zip(pairs, masks, strict=True)
            ]

        merged = TokenValues(on_masks("advantages"), on_masks("returns"))
        return TwoChannelBatch(self.estimator, self.answer, self.honesty, self.estimate, merged)


def whole_batch(channel: Channel) -> Tensor:
    """(N,) long: every entry, in prompt order."""
    return torch.arange(len(channel.rewards))


def estimate_scored(batch: TwoChannelBatch, channel: Channel) -> TokenValues:
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
    n = channel.group_size
    by_group = channel.scored.reshape(-1, n)  # (G, n)
    if batch.estimator in SEPARABLE:
        total = _zeros(channel)
        members = by_group.sum(-1)  # (G,)
        for m in sorted(set(members.tolist()) - {0, 1}):
            chosen = by_group & (members == m).unsqueeze(-1)
            part = batch.estimate(channel, chosen.reshape(-1).nonzero().squeeze(-1), m)
            total = _add(total, part)
        return total
    groups = by_group.any(-1)  # groups with nothing to say are left out of every mean
    if batch.estimator == "reinforce_baseline":
        groups = by_group.sum(-1) > 1
    if not groups.any():
        return _zeros(channel)
    rewards = channel.rewards.reshape(-1, n)
    scope: int | None = None if batch.estimator == "flash_reinforce" else -1
    kept = by_group & groups.unsqueeze(-1)
    mean = _masked_mean(rewards, kept, scope)
    filled = replace(channel, rewards=torch.where(kept, rewards, mean).reshape(-1))
    rows = groups.repeat_interleave(n).nonzero().squeeze(-1)
    return batch.estimate(filled, rows, n)


def _masked_mean(values: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    """Mean over the mask along `dim` (kept as size 1), or over everything; 0 where the mask is empty."""
    if dim is None:
        return keep(values, mask).sum() / mask.sum().clamp(min=1)
    return keep(values, mask).sum(dim, keepdim=True) / mask.sum(dim, keepdim=True).clamp(min=1)


def _zeros(channel: Channel) -> TokenValues:
    zeros = [torch.zeros(mask.shape, dtype=torch.float32) for mask in channel.masks]
    return TokenValues(zeros, [zero.clone() for zero in zeros])


def _add(one: TokenValues, other: TokenValues) -> TokenValues:
    return TokenValues(
        [a + b for a, b in zip(one.advantages, other.advantages, strict=True)],
        [a + b for a, b in zip(one.returns, other.returns, strict=True)],
    )
