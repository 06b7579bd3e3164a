"""How far two passes through the host are apart.  A number that is not finite is as far apart as it gets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from confession_plugin.seal_report import distance

if TYPE_CHECKING:
    from confession_plugin.openrlhf.check.passes import Pass

#: Largest relative difference to the stock step's numbers in fp32: the same sums in another order.
TOLERANCE = 1e-5

#: Logged by the host and different on purpose: a sample's tokens, confession included.
COUNTS_CONFESSIONS = frozenset({"total_length"})

Gradients = Sequence[Mapping[str, Tensor]]


def largest_change(one: Gradients, other: Gradients) -> float:
    """Largest difference of two lists of gradients, relative to the largest entry of `one`'s tensor; 0 for equal."""
    worst = 0.0
    nothing: dict[str, Tensor] = {}
    for a, b in itertools.zip_longest(one, other, fillvalue=nothing):
        if a.keys() != b.keys():
            return math.inf
        for name in a:
            scale = max(float(a[name].abs().nan_to_num().max()), 1e-12)
            worst = max(worst, distance(a[name], b[name]) / scale)
    return worst


def gradients(one: Pass, other: Pass) -> float:
    """Largest relative change of actor and critic gradients over all optimizer steps."""
    a, b = one.trained, other.trained
    return max(largest_change(a.actor, b.actor), largest_change(a.critic, b.critic))


def outcomes(one: Pass, other: Pass) -> float:
    """Largest change of what the host reads off samples besides their tokens."""
    if len(one.outcomes) != len(other.outcomes):
        return math.inf
    return max(_tensors(a, b) for a, b in zip(one.outcomes, other.outcomes, strict=True))


def shaped(one: Pass, other: Pass) -> float:
    """Largest change of the task rewards as they train, after reward model and penalties, and of the answers' KL."""
    # The KL is a mean over as many numbers and some zeros: the same sum in another order.
    kl = distance(one.shaped["kl"], other.shaped["kl"])
    return max(distance(one.shaped["rewards"], other.shaped["rewards"]), kl if kl > TOLERANCE else 0.0)


def _tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return max(distance(one[name], other[name]) for name in one) if one.keys() == other.keys() else math.inf


def on_masks(one: Pass, other: Pass, masks: Sequence[Tensor]) -> float:
    """Largest change of advantages and returns on the masks."""
    return max(
        distance(getattr(a, name)[mask], getattr(b, name)[mask])
        for a, b, mask in zip(one.experiences, other.experiences, masks, strict=True)
        for name in ("advantages", "returns")
    )


def answer_numbers(one: Pass, other: Pass) -> float:
    """Largest change of the host's logged numbers, relative where they are large.

    Every number but `COUNTS_CONFESSIONS`, and the KL coefficient that an adaptive controller makes of them.
    """
    return _numbers(_logged(one), _logged(other)) if _logged(one).keys() == _logged(other).keys() else math.inf


def confession_losses(one: Pass, other: Pass) -> float:
    """Largest change of the confession's loss terms."""
    a, b = one.trained.status, other.trained.status
    names = [name for name in a if name.startswith("confession/") and name.endswith("_loss")]
    return _numbers({name: a[name] for name in names}, b) if names else math.inf


def _logged(passed: Pass) -> dict[str, float]:
    numbers = passed.rollout_stats | passed.trained.status | {"next KL coefficient": passed.trained.kl_coefficient}
    return {
        name: value
        for name, value in numbers.items()
        if not name.startswith("confession/") and name not in COUNTS_CONFESSIONS
    }


def _numbers(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    worst = 0.0
    for name, value in one.items():
        change = distance(_number(value), _number(other[name]))
        # Not `change / max(abs(value), 1)` alone: inf / nan is nan, and no maximum keeps a nan.
        worst = max(worst, change / max(abs(value), 1.0) if math.isfinite(change) else math.inf)
    return worst


def _number(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


def finite(passed: Pass) -> bool:
    """Every number of the pass is finite where it is used."""
    values: list[Any] = [value for step in (*passed.trained.actor, *passed.trained.critic) for value in step.values()]
    for one in passed.experiences:
        values += [value[one.action_mask.bool()] for value in (one.advantages, one.returns)]
    values += map(_number, passed.trained.status.values())
    return all(bool(torch.isfinite(value).all()) for value in values)
