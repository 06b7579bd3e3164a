"""The per-sample numbers that ride in ``Experience.info``, and views of an experience as one channel sees it.

``Experience.info`` is the one place of the host's batch that keeps an entry per sample through every concatenation,
split and replay buffer.  The host logs whatever it finds there, so what is only for us is taken out again: the
metrics after `metrics.compute_rollout_stats`, the spans before each training step.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from confession_plugin.channels import Spans, keep
from confession_plugin.sample_stats import NUMBERS, STATS

PREFIX = "confession/"

_DTYPES: dict[Any, torch.dtype] = {bool: torch.float32, int: torch.long, float: torch.float32}

#: Columns that stay until the training step.
TRAINING_KEYS = tuple(name for name, stat in STATS.items() if stat.lifetime == "training")
#: Columns that are taken out once the metrics are made.
BATCH_KEYS = tuple(name for name, stat in STATS.items() if stat.lifetime == "batch")


def write_info(info: dict[str, Any], numbers: Mapping[str, Any]) -> None:
    """Add a sample's numbers to its info; every column is written for every sample, as the host demands."""
    for name in STATS:
        info[PREFIX + name] = _column_of([numbers[name]] if name in numbers else _missing(name, 1), name)


def complete_info(experience: Any, names: Sequence[str] = tuple(STATS)) -> None:
    """Write the columns that samples from elsewhere lack: whoever made them, they were not asked.

    Subclasses of the host's samples generator may make samples of their own.
    """
    for name in names:
        if PREFIX + name not in experience.info:
            experience.info[PREFIX + name] = _column_of(_missing(name, _size(experience)), name)


def _size(experience: Any) -> int:
    """B, or 1 for a sample out of the replay buffer."""
    if experience.action_mask is not None:
        return len(torch.atleast_2d(experience.action_mask))
    return 0 if experience.rewards is None else len(torch.atleast_1d(experience.rewards))


def _missing(name: str, count: int) -> list[Any]:
    return [copy.copy(STATS[name].missing) for _ in range(count)]


def _column_of(values: list[Any], name: str) -> Any:
    kind = STATS[name].kind
    return torch.tensor(values, dtype=_DTYPES[kind]) if kind in NUMBERS else values


def column(info: Mapping[str, Any], name: str) -> Tensor:
    """(B,) values of one number: a tensor after the rollout, a list of 0-d tensors out of the replay buffer."""
    values = info.get(PREFIX + name)
    if values is None:  # samples from elsewhere, see `complete_info`
        values = _column_of(_missing(name, len(info[PREFIX + "asked"])), name)
    return values if isinstance(values, Tensor) else torch.stack([torch.as_tensor(value) for value in values])


def values_of(info: Mapping[str, Any], name: str) -> list[Any]:
    """The B values of one number, short text or mapping, as Python objects."""
    return column(info, name).tolist() if STATS[name].kind in NUMBERS else list(info[PREFIX + name])


def spans_of(experience: Any) -> Spans:
    """The confession spans of a batched experience."""
    complete_info(experience, TRAINING_KEYS)
    info = experience.info
    return Spans(
        asked=column(info, "asked").bool(), length=column(info, "length"), scored=column(info, "scored").bool()
    )


def drop_keys(experience: Any, keys: Sequence[str]) -> None:
    """Take our entries out of the info before the host logs it."""
    for key in keys:
        experience.info.pop(PREFIX + key, None)


def step_view(experience: Any, mask: Tensor, width: int | None = None, **changes: Any) -> Any:
    """The experience as one channel sees it: its (B, A) mask, nothing outside it, the first `width` positions."""
    tokens = {
        name: keep(value, mask)[:, :width]
        for name in ("kl", "values")
        if (value := getattr(experience, name)) is not None
    }
    action_mask = mask.to(experience.action_mask.dtype)[:, :width]
    return dataclasses.replace(experience, action_mask=action_mask, **tokens, **changes)


def take_rows(experience: Any, rows: Tensor) -> Any:
    """The experience with only some of its samples, for advantage computation (which reads tensors alone)."""
    picked = {
        field.name: value[rows]
        for field in dataclasses.fields(experience)
        if isinstance(value := getattr(experience, field.name), Tensor)
    }
    return dataclasses.replace(experience, **picked)


# ── Logged means over the answer's tokens ──

_answer_masks: ContextVar[Mapping[int, Tensor] | None] = ContextVar("answer_masks", default=None)


@contextmanager
def answer_statistics(experiences: Sequence[Any]) -> Any:
    """Inside, the host's `masked_mean` over one of these action masks reads the answer's tokens only."""
    masks = {id(one.action_mask): spans_of(one).answer_mask(one.action_mask) for one in experiences}
    token = _answer_masks.set(masks)
    try:
        yield
    finally:
        _answer_masks.reset(token)


def masked_mean(host: Any, tensor: Tensor, mask: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
    """Seam: OpenRLHF ``masked_mean`` as the experience maker and the trainers read it, for logged statistics."""
    answer = (_answer_masks.get() or {}).get(id(mask))
    if answer is None:
        return host(tensor, mask, *args, **kwargs)
    return host(keep(tensor, answer), answer.to(mask.dtype if mask is not None else torch.bool), *args, **kwargs)
