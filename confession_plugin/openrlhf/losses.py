"""Seam: OpenRLHF's actor and critic trainers: the host's own losses, once per channel.

``loss = answer + coef * confession`` for every term (policy, value, KL, entropy).  Each channel is the host's own
loss function on that channel's mask, with that channel's denominators, on inputs that are zero outside the mask: a
sequence-level statistic (GSPO, importance gates) cannot read the other channel, and a confession's length cannot
rescale the answer's gradient.

The per-channel masks and denominators travel in ``loss_batch_info``, the keyword dictionary the host hands to its
policy loss, value loss and ``aggregate_loss`` alike.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from confession_plugin import session
from confession_plugin.channels import AnswerTraining, keep
from confession_plugin.openrlhf.experiences import PREFIX, TRAINING_KEYS, answer_statistics, drop_keys, spans_of
from confession_plugin.openrlhf.extra_confessions import EXTRA, unfold

CHANNELS = "channels"

Norm = dict[str, Any]
"""A channel's denominators as the host names them: dp_size, batch_num_tokens, global_batch_size."""


@dataclass(frozen=True)
class ChannelLoss:
    """How one channel enters a micro-batch's loss."""

    weight: float
    mask: Tensor
    """(B, A) bool: the tokens this channel trains."""
    norm: Norm


class Channels:
    """Both channels of one micro-batch, and what each contributed to every loss term (detached, for the log)."""

    def __init__(self, answer: ChannelLoss, confession: ChannelLoss) -> None:
        self.answer = answer
        self.confession = confession
        self.terms: list[tuple[Tensor, Tensor]] = []
        self.grad_share = 0.0
        """Of the squared gradient at the model's outputs, what stands at the confessions' tokens."""

    def watch(self, outputs: Tensor) -> None:
        """Note each channel's share of the gradient, once it arrives at these (B, A) outputs of the model.

        The norm that clipping reads is that of the weights' gradient, and its parts would take a backward pass each.
        At the outputs both parts stand side by side on disjoint tokens, for nothing.
        """
        if outputs.requires_grad:
            outputs.register_hook(self._note)

    def _note(self, gradient: Tensor) -> None:
        squares = [keep(gradient, channel.mask).double().square().sum() for channel in (self.answer, self.confession)]
        self.grad_share = float(squares[1] / (squares[0] + squares[1]).clamp(min=1e-300))

    def combine(self, loss_of: Callable[[ChannelLoss], Tensor]) -> Tensor:
        """answer + coef * confession, for one loss term."""
        answer, confession = loss_of(self.answer), loss_of(self.confession)
        self.terms.append((answer.detach(), confession.detach()))
        # Not `answer + 0 * confession`: at coef 0 not even a NaN of the confession's may reach the answer's gradient.
        return answer + self.confession.weight * confession if self.confession.weight else answer


class ChannelLossFn(nn.Module):
    """A host loss module (``PolicyLoss``, ``ValueLoss``) run once per channel.

    Called without channels it is the host's module.  Logged statistics beside the loss are the answer channel's.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *tensors: Tensor, action_mask: Tensor, **info: Any) -> Any:
        channels: Channels | None = info.pop(CHANNELS, None)
        if channels is None:
            return self.inner(*tensors, action_mask=action_mask, **info)
        channels.watch(tensors[0])
        statistics: list[Any] = []

        def loss_of(channel: ChannelLoss) -> Tensor:
            seen = {name: _on_mask(value, channel.mask) for name, value in info.items()}
            result = self.inner(
                *(_on_mask(tensor, channel.mask) for tensor in tensors),
                action_mask=channel.mask.to(action_mask.dtype),
                **seen,
                **channel.norm,
            )
            if not isinstance(result, tuple):
                return result
            if channel is channels.answer:
                # A micro-batch without trained answer tokens has no clip ratio or KL: log 0, not NaN.
                statistics.extend(None if value is None else torch.nan_to_num(value) for value in result[1:])
            return result[0]

        loss = channels.combine(loss_of)
        return (loss, *statistics) if statistics else loss


def aggregate_loss(host: Any, loss: Tensor, loss_mask: Tensor, *args: Any, **info: Any) -> Tensor:
    """Seam: ``aggregate_loss`` as the actor trainer calls it for KL and entropy."""
    channels: Channels | None = info.pop(CHANNELS, None)
    if channels is None:
        return host(loss, loss_mask, *args, **info)
    return channels.combine(
        lambda channel: host(keep(loss, channel.mask), channel.mask.to(loss_mask.dtype), *args, **info, **channel.norm)
    )


def _on_mask(value: Any, mask: Tensor) -> Any:
    return keep(value, mask) if isinstance(value, Tensor) and value.shape == mask.shape else value


# ── Denominators ──


@dataclass(frozen=True)
class BatchNorms:
    """Denominators of one training pass that come from the whole batch instead of one optimizer window."""

    confession: Norm
    answer: Norm | None
    """Exclusive mode only; None: the answer's denominators are the host's own."""

    def per(self, passes: int) -> BatchNorms:
        """The batch's totals shared out over its micro-batches (or, under dynamic batching, optimizer steps)."""

        def share(norm: Norm) -> Norm:
            return _positive({**norm, **{key: norm[key] / max(passes, 1) for key in _TOTALS}})

        return BatchNorms(share(self.confession), None if self.answer is None else share(self.answer))


_TOTALS = ("batch_num_tokens", "global_batch_size")
_batch_norms: ContextVar[BatchNorms] = ContextVar("batch_norms")


def ppo_train(host: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Seam: the training pass over the replay buffer, actor's and critic's.

    A window (one optimizer step) with few confession tokens must not take a full-size confession step, as it would
    if it divided by its own few tokens: the confession's denominators are those of the whole batch, per window.
    In exclusive mode the same holds for the answers, of which a window may have few or none.
    """
    exclusive = session.config().answer_training == "exclusive"
    norms = BatchNorms(batch_totals(self, 1), batch_totals(self, 0) if exclusive else None)
    buffer = self.replay_buffer
    if not buffer.dynamic_batch:
        # Per micro-batch: the host divides a window's totals by its number of micro-batches, to undo DeepSpeed's
        # averaging over them (OpenRLHF: _optimizer_step_loss_norm).
        norms = norms.per(len(buffer.items) // buffer.sample_batch_size)
    token = _batch_norms.set(norms)
    try:
        return host(self, *args, **kwargs)
    finally:
        _batch_norms.reset(token)


def batch_totals(trainer: Any, which: int) -> Norm:
    """Trained tokens and sequences of the whole batch, over all data-parallel ranks, by the host's own counting.

    `which`: 0 the answer channel, 1 the confession channel.
    """
    from openrlhf.utils.loss_utils import get_loss_batch_info

    rows = [row for item in trainer.replay_buffer.items for row in (item, *item.info.get(EXTRA, ()))]
    masks = [trained_masks(row)[which].reshape(1, -1) for row in rows]
    width = max(mask.shape[-1] for mask in masks)
    padded = torch.cat([nn.functional.pad(mask, (0, width - mask.shape[-1])) for mask in masks])  # (items, width)
    # The buffer may be in main memory; ranks add up where their model is.
    model = trainer.actor if hasattr(trainer, "actor") else trainer.critic
    return get_loss_batch_info(trainer.strategy, padded.to(next(model.parameters()).device))


def _positive(norm: Norm) -> Norm:
    """A channel with no token at all has loss 0 / 1, not 0 / 0."""
    return {**norm, **{key: torch.where(norm[key] > 0, norm[key], torch.ones_like(norm[key])) for key in _TOTALS}}


def trained_masks(experience: Any, answer_training: AnswerTraining | None = None) -> tuple[Tensor, Tensor]:
    """(B, A) bool each: answer and confession tokens of a (possibly unbatched) experience that take gradients."""
    mode = answer_training or session.config().answer_training
    mask = experience.action_mask
    return spans_of(experience).trained_masks(mask if mask.dim() > 1 else mask.unsqueeze(0), mode)


def iter_grad_accum_global_norm(
    host: Any, data_iter: Iterable[Any], strategy: Any, accumulated_gradient: int, mask_fn: Any, **kwargs: Any
) -> Iterator[tuple[Any, dict[str, Norm]]]:
    """Seam: micro-batches with both channels' denominators.

    The answer's are the host's own, per optimizer window, over the answer tokens; the confession's are the batch's.
    """
    norms = _batch_norms.get()
    windows = host(data_iter, strategy, accumulated_gradient, lambda item: trained_masks(item)[0], **kwargs)
    for item, window in windows:
        yield item, {"answer": norms.answer or _positive(window), "confession": norms.confession}


def setup_dynamic_batch(host: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Seam: ``NaiveReplayBuffer.setup_dynamic_batch``, whose totals must count the answer's tokens only.

    The partition into micro-batches is by sequence length and stays the host's; the action masks are narrowed to the
    answer for the time of the count.
    """
    whole = [item.action_mask for item in self.items]
    for item in self.items:
        item.action_mask = trained_masks(item)[0].reshape(item.action_mask.shape).to(item.action_mask.dtype)
    try:
        return host(self, *args, **kwargs)
    finally:
        for item, mask in zip(self.items, whole, strict=True):
            item.action_mask = mask


# ── One training step ──


def training_step(host: Any, self: Any, experience: Any, *args: Any, **kwargs: Any) -> Any:
    """Seam: ``ActorPPOTrainer.training_step`` and ``CriticPPOTrainer.training_step``."""
    call = inspect.signature(host).bind(self, experience, *args, **kwargs)
    call.apply_defaults()
    rows = call.arguments["experience"] = unfold(experience)
    norms = call.arguments["loss_batch_info"]
    if norms is None:
        norms = _dynamic_norms(self, call.arguments["step"])
    answer, confession = trained_masks(rows)
    spans = spans_of(rows)
    channels = Channels(
        ChannelLoss(1.0, answer, norms["answer"]),
        ChannelLoss(session.config().coef, confession, norms["confession"]),
    )
    call.arguments["loss_batch_info"] = {CHANNELS: channels}
    with answer_statistics([rows]):
        drop_keys(rows, TRAINING_KEYS)
        rows.info.pop(EXTRA, None)
        status = host(*call.args, **call.kwargs)
    if "num_samples" in status:
        # The weights of logged means: the stock run's, which has neither confession tokens nor extra rows.
        status["num_samples"] = float(len(experience.sequences))
        status["num_action_tokens"] = float(spans.answer_mask(rows.action_mask).sum().item())
    return _log_by_channel(self, status, channels)


def _dynamic_norms(trainer: Any, step: int) -> dict[str, Norm]:
    """Both channels' denominators under dynamic batching; the host's bookkeeping holds the answer's per step."""
    from openrlhf.utils.loss_utils import get_loss_batch_info

    buffer = trainer.replay_buffer
    norms = _batch_norms.get().per(sum(buffer.dynamic_optimizer_step))
    answer = get_loss_batch_info(
        trainer.strategy,
        torch.zeros((), device=norms.confession["batch_num_tokens"].device),
        batch_num_tokens=buffer.dynamic_batch_num_tokens[step],
        global_batch_size=buffer.dynamic_global_batch_size[step],
    )
    return {"answer": norms.answer or _positive(answer), "confession": norms.confession}


def _log_by_channel(trainer: Any, status: dict[str, Any], channels: Channels) -> dict[str, Any]:
    """Each logged loss is the answer's, under the host's name; the confession's stands beside it as confession/..."""
    if "metrics" not in status:  # the critic's flat status
        answer, confession = channels.terms[0]
        ours = {PREFIX + "critic_loss": confession.item(), PREFIX + "critic_grad_share": channels.grad_share}
        return {**status, "critic_loss": answer.item(), **ours}
    args = trainer.args
    names = itertools.chain(
        ["policy_loss"],
        ["kl"] if args.algo.kl.use_loss else [],
        ["entropy_loss"] if args.actor.entropy_coef is not None else [],
    )
    for name, (answer, confession) in zip(names, channels.terms, strict=True):
        status["metrics"][name] = answer
        status["metrics"][PREFIX + name] = confession
        # Each micro-batch's confession loss has the whole batch's denominator: its mean over samples is the batch's.
        status["weights"][name], status["weights"][PREFIX + name] = "token", "sample"
    status["metrics"][PREFIX + "grad_share"] = channels.grad_share
    status["weights"][PREFIX + "grad_share"] = "sample"
    return status


def trainer_init(host: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Seam: the trainers' constructors: their loss modules become per-channel ones."""
    host(self, *args, **kwargs)
    for name in ("actor_loss_fn", "critic_loss_fn"):
        if hasattr(self, name):
            setattr(self, name, ChannelLossFn(getattr(self, name)))
