"""The host's loss, once per channel: ``answer + coef * confession``, each with its own rows and denominators.

The host calls its loss once a micro-batch, and so do we with its own inputs; then again with the confessions' rows.

**Denominators.**  Some loss types divide by what stands in a micro-batch, one row or twenty.  With few confessions
that would give each of them another weight, so the confessions' loss is scaled to what it would be if the batch's
confessions were dealt out evenly: every row (for `bnpo`, every token) of the batch weighs the same.  In exclusive mode
the same goes for the answers, of which a micro-batch may have few.

Shapes: R rows of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from confession_plugin.config import Config
from confession_plugin.trl import host_state
from confession_plugin.trl.rows import ASKED, ROWS, TOTALS, Row, batch_of

HostLoss = Callable[[Any, Mapping[str, Any]], Tensor]

PREFIX = "confession/"

#: What each loss type of the host divides by: rows or tokens of a micro-batch, or the batch's ``num_items_in_batch``.
DENOMINATORS = {
    "grpo": "rows",
    "sapo": "rows",
    "luspo": "rows",
    "dr_grpo": "rows",
    "bnpo": "tokens",
    "dapo": "batch",
    "cispo": "batch",
    "vespo": "batch",
}


@dataclass(frozen=True)
class Totals:
    """Rows and tokens of one channel in a generation batch, over all processes."""

    rows: int
    tokens: int

    def scale(self, loss_type: str, rows: int, tokens: int, micro_batches: int) -> float:
        """What a micro-batch's loss, divided by its own `rows` or `tokens`, is multiplied by."""
        kind = DENOMINATORS[loss_type]
        if kind == "batch":
            return 1.0
        here, everywhere = (rows, self.rows) if kind == "rows" else (tokens, self.tokens)
        return here * micro_batches / everywhere if everywhere else 0.0

    def share(self, tokens: int, micro_batches: int) -> float:
        """The tokens here over those a micro-batch has on average."""
        return tokens * micro_batches / self.tokens if self.tokens else 0.0


def carried(name: str, totals: Totals) -> dict[str, Tensor]:
    """A channel's totals as the host's batch carries them: 0-d tensors, the same in every micro-batch."""
    return {f"{TOTALS}_{name}": torch.tensor(totals.rows), f"{TOTALS}_{name}_tokens": torch.tensor(totals.tokens)}


def compute_loss(host: HostLoss, trainer: Any, config: Config, model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """The loss of a micro-batch: the host's own on its own inputs, and the confessions' beside it."""
    stock = {name: value for name, value in inputs.items() if name not in (ROWS, ASKED) and TOTALS not in name}
    if ROWS not in inputs:
        return host(model, stock)
    rows = [row for of_one in inputs[ROWS] for row in of_one]
    if config.answer_training == "exclusive":
        loss = _exclusive(host, trainer, model, stock, inputs[ASKED], _totals("answers", inputs))
    else:
        loss = host(model, stock)
    count = 0 if config.coef == 0 else _rows_everywhere(trainer, rows)
    if count == 0:
        return loss
    filling = [_nothing(inputs)] * (count - len(rows))
    return loss + config.coef * _confessions(host, trainer, config, model, rows, filling, inputs)


def _totals(name: str, inputs: Mapping[str, Any]) -> Totals:
    return Totals(int(inputs[f"{TOTALS}_{name}"]), int(inputs[f"{TOTALS}_{name}_tokens"]))


def micro_batches_of(trainer: Any) -> int:
    """Micro-batches of a generation batch, over all processes."""
    return int(trainer.args.steps_per_generation * trainer.accelerator.num_processes)


def _confessions(
    host: HostLoss,
    trainer: Any,
    config: Config,
    model: Any,
    rows: list[Row],
    filling: list[Row],
    inputs: Mapping[str, Any],
) -> Tensor:
    """The host's loss on the confessions' rows, and on rows that only fill a process's micro-batch."""
    totals, batch = _totals("rows", inputs), batch_of(trainer, [*rows, *filling])
    device = batch["prompt_ids"].device
    batch["num_items_in_batch"] = torch.tensor(totals.tokens, device=device)
    if filling:
        batch["tool_mask"] = torch.ones_like(batch["completion_mask"])
        batch["tool_mask"][len(rows) :] = 0
    tokens = sum(len(row.ids) for row in rows)
    # The host divides by all rows that it is given.
    scale = totals.scale(trainer.loss_type, len(rows) + len(filling), tokens, micro_batches_of(trainer))
    # The entropy bonus is a mean over the micro-batch's tokens under every loss type: weighed by how many there are.
    entropy = totals.share(tokens, micro_batches_of(trainer)) / scale if scale else 0.0
    with host_state.second_loss(trainer, max_new_tokens=config.max_new_tokens, entropy_scale=entropy) as seen:
        loss = host(model, batch) * scale
    ours = trainer._metrics["train"]
    for name, values in seen.items():
        if rows and name != "entropy_coef":
            ours[PREFIX + name].extend(values)
    if rows:
        ours[PREFIX + "loss"].append(loss.item() * trainer.current_gradient_accumulation_steps)
    return loss


def _exclusive(
    host: HostLoss, trainer: Any, model: Any, stock: dict[str, Any], asked: Tensor, totals: Totals
) -> Tensor:
    """The answers' loss where asked groups are context only: their tokens stay attended and leave the loss."""
    trained = (~asked).to(stock["completion_mask"].device).unsqueeze(-1).to(stock["completion_mask"].dtype)
    mask = stock["completion_mask"] * trained  # (R, C)
    answers = {**stock, "tool_mask": trained.expand_as(mask)}
    answers["num_items_in_batch"] = torch.tensor(totals.tokens, device=mask.device)
    if trainer.loss_type == "bnpo":
        scale = totals.scale("bnpo", 0, int(mask.sum()), micro_batches_of(trainer))
    else:  # the host divides by all rows of the micro-batch, trained or not
        scale = totals.scale(trainer.loss_type, len(mask), 0, micro_batches_of(trainer))
    return host(model, answers) * scale


def _rows_everywhere(trainer: Any, rows: list[Row]) -> int:
    """Rows of the second pass, as many in every process as the one with most confessions has in this micro-batch.

    The host gathers a number a row from every process, and the wrappers of distributed models wait for all of them.
    """
    if trainer.accelerator.num_processes == 1:
        return len(rows)
    count = torch.tensor([len(rows)], device=trainer.accelerator.device)
    return int(trainer.accelerator.gather(count).max())


def _nothing(inputs: Mapping[str, Any]) -> Row:
    """A row whose token takes no gradient, for a process with fewer confessions than another in this micro-batch."""
    context = inputs["prompt_ids"][0][inputs["prompt_mask"][0].bool()].tolist()
    zero = torch.zeros(1)
    return Row(
        context,
        inputs["completion_ids"][0][:1].tolist(),
        zero,
        old=zero if "old_per_token_logps" in inputs else None,
        reference=zero if "ref_per_token_logps" in inputs else None,
    )
