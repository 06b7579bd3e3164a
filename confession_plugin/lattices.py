"""Rewards that the seal check puts in place of others: those that graders and judges give, and far-off ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

RewardOf = Callable[[int, int], float]
"""(sample, group) -> reward, where both are any whole numbers that tell samples and groups apart."""

#: Rewards as graders and judges give them: on few values, often equal, sometimes negative; and rewards far off.
REWARDS: Mapping[str, RewardOf] = {
    "zero or one": lambda sample, group: float(_mixed(sample) % 2),
    "thirds": lambda sample, group: _mixed(sample) % 4 / 3,
    "ninths": lambda sample, group: _mixed(sample) % 10 / 9,
    "negative": lambda sample, group: -1.0 - _mixed(sample) % 3,
    "equal within a group": lambda sample, group: float(_mixed(group) % 2),
    "all zero": lambda sample, group: 0.0,
    "huge": lambda sample, group: (-1.0) ** _mixed(sample) * 1e6,
}


def _mixed(number: int) -> int:
    return number * 7919 % 10007  # neighbours get unrelated values, whatever the lattice
