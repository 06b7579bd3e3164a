"""Seam: OpenRLHF ``BasePPOTrainer._compute_rollout_stats``: the batch's numbers through the host's own loggers."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from confession_plugin.openrlhf import session
from confession_plugin.openrlhf.experiences import BATCH_KEYS, PREFIX, REASON_KEY, column, drop_keys
from confession_plugin.openrlhf.siblings import samples_of_siblings, siblings_of, unfold
from confession_plugin.records import BatchStats

logger = logging.getLogger(__name__)


def compute_rollout_stats(host: Any, self: Any, experiences: list[Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The host's statistics and, beside them, what the `confession_metrics` plugins make of the batch."""
    stats: dict[str, Any] = host(self, experiences, *args, **kwargs)
    # Last registered first: built-in numbers first here, so that a plugin may replace one by its name.
    for numbers in reversed(session.plugins().hook.confession_metrics(stats=batch_stats(experiences))):
        for name, value in (numbers or {}).items():
            if not math.isfinite(value):
                logger.warning("metric %s is %r and is left out: undefined numbers poison curves", name, value)
                continue
            stats[PREFIX + name] = float(value)
    stats[PREFIX + "observer_failures"] = float(sum(session.plugins().observer_failures.values()))
    for experience in experiences:
        drop_keys(experience, (*BATCH_KEYS, REASON_KEY))
    return stats


def batch_stats(experiences: list[Any]) -> BatchStats:
    """Per-sample numbers of a rollout batch, every further confession about an answer an entry of its own."""

    rows = [unfold(experience) for experience in experiences]

    def every(key: str) -> list[Any]:
        values: list[Any] = torch.cat([column(one.info, key) for one in rows]).tolist()
        return values

    asked, scored = ([bool(value) for value in every(key)] for key in ("asked", "scored"))
    has_truth = all("violation" in experience.info for experience in experiences)
    violation = (
        torch.cat([_violations(experience) for experience in experiences]).tolist()
        if has_truth
        else [math.nan] * len(asked)
    )
    return BatchStats(
        step=max((int(step) for step in every("step")), default=0),
        asked=asked,
        scored=scored,
        reward=[reward if known else math.nan for reward, known in zip(every("reward"), scored, strict=True)],
        parsed=[bool(value) for value in every("parsed")],
        truncated=[bool(value) for value in every("truncated")],
        length=every("length"),
        grade=every("grade"),
        admits=every("admits"),
        fingerprint=every("fingerprint"),
        latency_s=every("latency_s"),
        violation=violation,
        unscored=[reason for one in experiences for reason in _reasons(one)],
        sibling=[further for one in experiences for further in _further(one)],
    )


def _reasons(experience: Any) -> list[str]:
    """Why each row's confession has no score; empty where it has one."""
    return [reason for one in (experience, *siblings_of(experience)) for reason in one.info[PREFIX + REASON_KEY]]


def _further(experience: Any) -> list[bool]:
    return [False] * len(experience.sequences) + [True] * len(samples_of_siblings(experience))


def _violations(experience: Any) -> Tensor:
    """(R,) float: the truth about the answer each row's confession is about."""
    of_samples: Tensor = experience.info["violation"].float()
    return torch.cat([of_samples, of_samples[samples_of_siblings(experience)]])
