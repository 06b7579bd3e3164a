"""Confessions as rows of their own: what rides with the host's batch, and the padded batch that its loss is given.

A row is ``prompt | answer | request`` as the prompt and the confession as the completion.  The rows of a sample ride
in one list of the host's batch, an entry a sample, which the host shuffles and cuts with its tensors.

Shapes: R rows of a micro-batch, P positions of the longest context, C tokens of the longest confession.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import pad

#: Keys of ours in the host's batch.
ROWS = "confession_rows"  # a tuple of rows for each sample
ASKED = "confession_asked"  # (B,) bool
TOTALS = "confession_totals"  # prefix of 0-d tensors, see `losses.Totals`


@dataclass(frozen=True)
class Row:
    """One scored confession."""

    context: Sequence[int]
    """Token ids of prompt, answer and request."""
    ids: Sequence[int]
    """The confession's tokens."""
    advantages: Tensor
    """(C,) float32: one a token."""
    old: Tensor | None = None
    """(C,) log-probs of the policy that wrote it, where the host keeps them of its answers."""
    reference: Tensor | None = None
    """(C,) log-probs of the reference model, likewise."""


def batch_of(trainer: Any, rows: Sequence[Row]) -> dict[str, Tensor]:
    """The rows as the host's loss takes a micro-batch."""
    device, fill, multiple = trainer.accelerator.device, trainer._tokenizer.pad_token_id, trainer.pad_to_multiple_of

    def left(values: Sequence[Tensor], padding: int) -> Tensor:
        return pad(list(values), padding_value=padding, padding_side="left", pad_to_multiple_of=multiple).to(device)

    def right(values: Sequence[Tensor], padding: int) -> Tensor:
        return pad(list(values), padding_value=padding, padding_side="right", pad_to_multiple_of=multiple).to(device)

    contexts = [torch.tensor(row.context, dtype=torch.long) for row in rows]
    ids = [torch.tensor(row.ids, dtype=torch.long) for row in rows]
    batch = {
        "prompt_ids": left(contexts, fill),  # (R, P)
        "prompt_mask": left([torch.ones_like(one) for one in contexts], 0),
        "completion_ids": right(ids, fill),  # (R, C)
        "completion_mask": right([torch.ones_like(one) for one in ids], 0),
        "advantages": _advantages(rows, right),
    }
    for name, key in (("old", "old_per_token_logps"), ("reference", "ref_per_token_logps")):
        values = [getattr(row, name) for row in rows]
        if values and values[0] is not None:
            batch[key] = right(values, 0)
    return batch


def _advantages(rows: Sequence[Row], right: Any) -> Tensor:
    """(R,) where every row has one advantage, as the host's own; (R, C) where a plugin gave one a token."""
    if all(bool((row.advantages == row.advantages[0]).all()) for row in rows):
        return right([row.advantages[:1] for row in rows], 0)[:, 0]
    values: Tensor = right([row.advantages for row in rows], 0)
    return values


def whole(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(R, P + C) token ids and attention of a batch."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    return ids, torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
