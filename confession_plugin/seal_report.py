"""What a seal check found: which comparisons it made, and the one line that is printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from confession_plugin.unsealed import FLAG, LABEL


def distance(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference; inf for other shapes, and where either side holds NaN or inf."""
    if one.shape != other.shape or not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        return math.inf
    return float((one.double() - other.double()).abs().max()) if one.numel() else 0.0


@dataclass(frozen=True)
class Comparison:
    """One direction of the seal and the most that moved in it, over all passes."""

    name: str
    """What might have moved: ``honesty -> answer advantages``."""
    seam: str
    """Where in the host it would have."""
    change: float = 0.0
    """By how much it did."""
    allowed: float = 0.0
    """By how much it may; 0 for not by a bit."""
    where: str = ""
    """The pass in which it was most."""

    @property
    def holds(self) -> bool:
        return self.change <= self.allowed  # NaN does not hold

    def __str__(self) -> str:
        at = f" with {self.where}" if self.where else ""
        return f"{self.name} moved by {self.change:.2g} (allowed {self.allowed:g}){at}, at {self.seam}"


@dataclass(frozen=True)
class SealReport:
    """The outcome of a check."""

    combination: str
    """What was checked, in a few words."""
    comparisons: Sequence[Comparison]
    """In the order of the data's way: the first that does not hold is nearest to the cause."""
    passes: int
    """How often the host ran."""
    not_exercised: Sequence[str]
    """What the run's flags switch on and the check leaves out."""
    seconds: float
    """What the check took."""
    unsealed: str | None = None
    """The file of ``--confession.unsealed_coupling``, which was left out of all passes."""

    @property
    def violated(self) -> bool:
        """Something moved that no flag asks for."""
        return not all(one.holds for one in self.comparisons)

    @property
    def holds(self) -> bool:
        return not self.violated and self.unsealed is None

    @property
    def broken(self) -> Comparison:
        """The comparison that does not hold; the nearest to the cause where several do not."""
        return next(one for one in self.comparisons if not one.holds)

    def __str__(self) -> str:
        if self.violated:
            return f"seal VIOLATED: {self.combination}; {self.broken} ({self.seconds:.1f} s)"
        exact = sum(not one.allowed for one in self.comparisons)
        near = max((one.change for one in self.comparisons if one.allowed), default=None)
        parts = [f"seal holds: {self.combination}; {self.passes} passes, {exact} comparisons bit-identical"]
        if self.unsealed is not None:
            parts = [
                f"seal {LABEL}: {self.combination}; {FLAG} {self.unsealed} pays or punishes answers for what their "
                f"confessions say; without it {self.passes} passes, {exact} comparisons bit-identical"
            ]
        parts += [] if near is None else [f"stock's gradients and numbers to {near:.1g}"]
        parts += [f"not exercised: {', '.join(self.not_exercised)}"] if self.not_exercised else []
        return f"{'; '.join(parts)} ({self.seconds:.1f} s)"
