"""Several confessions about one answer: the first is the end of the host's sample, the others are extra rows.

An extra row repeats ``prompt | answer | request`` and ends in another confession; of its tokens only the confession's
are marked as actions, so that the answer is trained once.  The host counts samples (optimizer windows, data-parallel
shards, groups), so an extra row is no sample of its own: it rides in its sample's info and becomes a row of its
sample's micro-batch for the time of a forward pass, an advantage computation or a training step.

Shapes: B samples of a micro-batch, E extra rows of theirs, R = B + E rows (samples first), A action positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from confession_plugin.openrlhf.experiences import PREFIX, TRAINING_KEYS, column, complete_info, values_of
from confession_plugin.sample_stats import NUMBERS, STATS

#: In the info: a list of extra rows (one-row experiences without padding) for each sample.
EXTRA = PREFIX + "extra_confessions"


def extra_of(experience: Any) -> list[Any]:
    """All extra rows of a micro-batch, sample by sample."""
    return [row for of_one in experience.info.get(EXTRA, ()) for row in of_one]


def samples_of_extra(experience: Any) -> Tensor:
    """(E,) long: the row of each extra row's sample."""
    counts = torch.tensor([len(of_one) for of_one in experience.info.get(EXTRA, ())], dtype=torch.long)
    return torch.arange(len(counts)).repeat_interleave(counts)


def unfold(experience: Any) -> Any:
    """The micro-batch with its extra rows behind its samples; the experience itself where there are none.

    Per-token tensors are (R, A), our own columns of the info (R,).  What the host keeps per sample (rewards, lengths,
    its own info) stays (B,).
    """
    complete_info(experience, TRAINING_KEYS)
    extra = extra_of(experience)
    if not extra:
        return experience
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(experience):
        samples = getattr(experience, field.name)
        if experience.is_step_tensor_field(field.name) and samples is not None:
            rows = [getattr(one, field.name).to(samples.device) for one in extra]
            width = max(samples.shape[-1], *(row.shape[-1] for row in rows))
            changes[field.name] = torch.cat([_padded(one, width) for one in (samples, *rows)])  # (R, width)
    info = {name: value for name, value in experience.info.items() if name != EXTRA}
    for name, stat in STATS.items():
        if PREFIX + name not in info:
            continue
        if stat.kind not in NUMBERS:
            info[PREFIX + name] = [text for one in (experience, *extra) for text in values_of(one.info, name)]
        else:
            own = column(info, name)
            info[PREFIX + name] = torch.cat([own, *(column(one.info, name).to(own.device) for one in extra)])
    return dataclasses.replace(experience, **changes, info=info)


def fold(experience: Any, rows: Any, names: Sequence[str]) -> None:
    """Write the per-token tensors `names` of the unfolded micro-batch back to its samples and extra rows."""
    extra = extra_of(experience)
    count = len(rows.action_mask) - len(extra)
    for name in names:
        value = getattr(rows, name)  # (R, A)
        if value is None:
            setattr(experience, name, None)
            continue
        setattr(experience, name, value[:count, : experience.action_mask.shape[-1]])
        for one, row in zip(extra, value[count:], strict=True):
            setattr(one, name, row[: one.action_mask.shape[-1]].unsqueeze(0))


def _padded(tensor: Tensor, width: int) -> Tensor:
    """Right padding with 0, as the host's replay buffer pads."""
    return nn.functional.pad(tensor, (0, width - tensor.shape[-1]))
