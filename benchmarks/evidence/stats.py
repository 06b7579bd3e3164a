"""Intervals and tests, in a few lines each, with no package beyond Python's own."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate and its interval."""

    mean: float
    low: float
    high: float
    n: int
    """Seeds, or cases of a pooled rate."""

    def __str__(self) -> str:
        if self.n == 0:
            return "-"
        bounds = f" ({self.low:.2f} to {self.high:.2f})" if math.isfinite(self.low) else ""
        return f"{self.mean:.2f}{bounds}"


NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def over_seeds(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of one number a seed, with Student's t; a single seed has no interval."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return NOTHING
    mean = statistics.mean(values)
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = student_t((1 + level) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def wilson(hits: float, cases: int, level: float = 0.95) -> Interval:
    """A share of independent cases, with Wilson's interval.  Cases of one run are not independent of its seed."""
    if not cases:
        return NOTHING
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    share, spread = hits / cases, z * z / cases
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return Interval(share, centre - half, centre + half, cases)


def bootstrap(
    values: Sequence[float],
    of: Callable[[Sequence[float]], float] = statistics.mean,
    level: float = 0.95,
    draws: int = 10_000,
) -> Interval:
    """A statistic with its percentile interval, from a fixed seed."""
    draw = random.Random(0)
    found = sorted(of(draw.choices(values, k=len(values))) for _ in range(draws))
    cut = int((1 - level) / 2 * draws)
    return Interval(of(values), found[cut], found[draws - 1 - cut], len(values))


class Equivalence(NamedTuple):
    """Two one-sided tests at 5 % each on paired differences."""

    difference: Interval
    """With its 90 % interval."""
    margin: float

    @property
    def holds(self) -> bool:
        return -self.margin < self.difference.low and self.difference.high < self.margin  # False without an interval


def equivalent(one: Sequence[float], other: Sequence[float], margin: float) -> Equivalence:
    """Is `other` - `one`, seed by seed, within the margin?  It holds where the 90 % interval lies inside of it."""
    return Equivalence(over_seeds([b - a for a, b in zip(one, other, strict=True)], level=0.90), margin)


@lru_cache
def student_t(p: float, df: int) -> float:
    """The p-quantile (p > 0.5) of Student's t: the density integrated by Simpson's rule, then bisection."""
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)

    def below(x: float, cells: int = 400) -> float:
        # With x = sqrt(df) tan(a) the density becomes a power of cos(a): smooth, and over a finite range.
        end = math.atan(x / math.sqrt(df))
        width = end / cells
        weights = ((1 if at in (0, cells) else 4 if at % 2 else 2, at * width) for at in range(cells + 1))
        area = sum(weight * math.cos(a) ** (df - 1) for weight, a in weights) * width / 3
        return 0.5 + scale * math.sqrt(df) * area

    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < p else (low, middle)
    return high
