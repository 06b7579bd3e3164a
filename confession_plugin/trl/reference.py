"""Log-probs of the confessions by the policy that wrote them and by the reference model, where the host keeps them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from confession_plugin.trl.rows import Row, batch_of, whole

#: The host's key in its batch, and the field of a row.
KEPT = {"old_per_token_logps": "old", "ref_per_token_logps": "reference"}


def with_log_probs(trainer: Any, rows: Sequence[Sequence[Row]], batch: Mapping[str, Any]) -> list[tuple[Row, ...]]:
    """The rows with the log-probs that the host's batch holds for the answers."""
    wanted = [name for name in KEPT if name in batch]
    flat = [row for of_one in rows for row in of_one]
    if wanted and flat:
        size = trainer.args.per_device_train_batch_size
        flat = [
            row for first in range(0, len(flat), size) for row in _filled(trainer, flat[first : first + size], wanted)
        ]
    filled = iter(flat)
    return [tuple(next(filled) for _ in of_one) for of_one in rows]


def _filled(trainer: Any, rows: Sequence[Row], wanted: Sequence[str]) -> list[Row]:
    found: dict[str, Tensor] = {
        KEPT[name]: _log_probs(trainer, rows, reference=name.startswith("ref")) for name in wanted
    }

    def filled(at: int, row: Row) -> Row:
        own: dict[str, Any] = {field: values[at, : len(row.ids)].cpu() for field, values in found.items()}
        return dataclasses.replace(row, **own)

    return [filled(at, row) for at, row in enumerate(rows)]


def _log_probs(trainer: Any, rows: Sequence[Row], *, reference: bool) -> Tensor:
    """(R, C)."""
    from trl.models.utils import disable_gradient_checkpointing

    batch = batch_of(trainer, rows)
    ids, attention = whole(batch)
    checkpointing = trainer.args.gradient_checkpointing_kwargs
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(disable_gradient_checkpointing(trainer.model, checkpointing))
        model = trainer.model
        if reference and trainer.ref_model is not None:
            model = trainer.ref_model
        elif reference:
            stack.enter_context(_without_adapter(trainer))
        width = batch["completion_ids"].shape[1]
        values: Tensor = trainer._get_per_token_logps_and_entropies(model, ids, attention, width)[0]
    return values.detach()


def _without_adapter(trainer: Any) -> Any:
    """A LoRA run's reference: the base model, or the adapter that the host has kept as ``ref``."""
    from trl.trainer.utils import use_adapter

    model = trainer.accelerator.unwrap_model(trainer.model)
    return use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None)
