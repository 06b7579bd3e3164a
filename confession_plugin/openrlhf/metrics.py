"""Seam: OpenRLHF ``BasePPOTrainer._compute_rollout_stats``: the batch's numbers through the host's own loggers."""

from __future__ import annotations

import logging
import math
from typing import Any

from confession_plugin import sample_stats, session
from confession_plugin.openrlhf.experiences import BATCH_KEYS, PREFIX, complete_info, drop_keys, values_of
from confession_plugin.openrlhf.extra_confessions import samples_of_extra, unfold
from confession_plugin.readable import ReadableWatch
from confession_plugin.records import BatchStats

logger = logging.getLogger(__name__)


def compute_rollout_stats(host: Any, self: Any, experiences: list[Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The host's statistics and, beside them, what the `confession_metrics` plugins make of the batch."""
    stats: dict[str, Any] = host(self, experiences, *args, **kwargs)
    batch = batch_stats(experiences)
    if not hasattr(self, "_confession_watch"):  # the host makes one trainer a run
        self._confession_watch = ReadableWatch(session.config().max_unparsed)
    warning = self._confession_watch.add(batch)
    if warning is not None:
        logger.warning("%s", warning)
    # Last registered first: built-in numbers first here, so that a plugin may replace one by its name.
    for numbers in reversed(session.plugins().hook.confession_metrics(stats=batch)):
        for name, value in (numbers or {}).items():
            if not math.isfinite(value):
                logger.warning("metric %s is %r and is left out: undefined numbers poison curves", name, value)
                continue
            stats[PREFIX + name] = float(value)
    self._confession_failures = getattr(self, "_confession_failures", 0) + _failures_in_workers(experiences)
    here = sum(session.plugins().observer_failures.values())
    stats[PREFIX + "observer_failures"] = float(here + self._confession_failures)
    for experience in experiences:
        drop_keys(experience, BATCH_KEYS)
    return stats


def batch_stats(experiences: list[Any]) -> BatchStats:
    """Per-sample numbers of a rollout batch, every further confession about an answer an entry of its own."""
    for experience in experiences:
        complete_info(experience)
    rows = [unfold(experience) for experience in experiences]
    columns = {name: [value for one in rows for value in values_of(one.info, name)] for name in sample_stats.STATS}
    samples = [[*range(len(one.sequences)), *samples_of_extra(one).tolist()] for one in experiences]
    labels, rewards = [list(one.labels) for one in experiences], [_answer_rewards(one) for one in experiences]
    return sample_stats.batch_stats(
        columns,
        [
            row >= len(one.sequences)
            for one, of_one in zip(experiences, samples, strict=True)
            for row in range(len(of_one))
        ],
        label=[of_one[at] for of_one, places in zip(labels, samples, strict=True) for at in places],
        answer_reward=[of_one[at] for of_one, places in zip(rewards, samples, strict=True) for at in places],
    )


def _failures_in_workers(experiences: list[Any]) -> int:
    """How often observers failed in the rollout workers, about the confessions of this batch."""
    return sum(int(sum(values_of(unfold(one).info, "observer_failures"))) for one in experiences)


def _answer_rewards(experience: Any) -> list[float]:
    """The task rewards before the host's penalties; NaN where the host keeps none."""
    rewards = experience.info.get("reward")
    return [math.nan] * len(experience.sequences) if rewards is None else [float(reward) for reward in rewards]
