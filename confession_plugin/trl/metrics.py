"""The batch's numbers, through the trainer's own log and its table of completions."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object

from confession_plugin import sample_stats
from confession_plugin.confess import Finished
from confession_plugin.plugins import PluginManager
from confession_plugin.readable import ReadableWatch
from confession_plugin.records import BatchStats
from confession_plugin.sample_stats import STATS, numbers_of

PREFIX = "confession/"
#: Columns of the completions table.
COLUMNS = ("confession", "honesty_reward", "unscored")

logger = logging.getLogger(__name__)


def batch_stats(
    found: Mapping[int, Sequence[Finished]],
    groups: Sequence[int],
    labels: Sequence[Any],
    rewards: Sequence[float | None],
) -> BatchStats:
    """The numbers of the whole batch, every further confession about an answer an entry of its own.

    Args:
        found: the confessions about each asked sample of this process.
        groups, labels, rewards: of each sample of this process, asked or not.
    """
    mine: list[tuple[dict[str, Any], bool, Any, float]] = []
    for sample, (group, label, reward) in enumerate(zip(groups, labels, rewards, strict=True)):
        known = math.nan if reward is None else reward
        for number, entry in enumerate([numbers_of(one.judged) for one in found.get(sample, ())] or [{}]):
            mine.append((entry | {"group": group}, number > 0, label, known))
    entries, extra, all_labels, all_rewards = zip(*gather_object(mine), strict=True)
    columns = {
        name: [entry[name] if name in entry else copy.copy(stat.missing) for entry in entries]
        for name, stat in STATS.items()
    }
    return sample_stats.batch_stats(columns, extra, label=all_labels, answer_reward=all_rewards)


def log(trainer: Any, plugins: PluginManager, watch: ReadableWatch, stats: BatchStats) -> None:
    """What the `confession_metrics` plugins make of the batch, in the trainer's own log.

    Raises:
        PluginError: too many confessions could not be read.
    """
    warning = watch.add(stats)
    if warning is not None and trainer.accelerator.is_main_process:
        logger.warning("%s", warning)
    numbers: dict[str, float] = {}
    # Last registered first: built-in numbers first here, so that a plugin may replace one by its name.
    for found in reversed(plugins.hook.confession_metrics(stats=stats)):
        for name, value in (found or {}).items():
            if not math.isfinite(value):
                logger.warning("metric %s is %r and is left out: undefined numbers poison curves", name, value)
                continue
            numbers[name] = float(value)
    numbers["observer_failures"] = float(sum(plugins.observer_failures.values()))
    for name, value in numbers.items():
        trainer._metrics["train"][PREFIX + name].append(value)


def log_table(trainer: Any, found: Mapping[int, Sequence[Finished]], samples: int) -> None:
    """The first confession about each answer beside it in the table of completions; None where there is none."""
    rows: list[tuple[Any, ...]] = [(None,) * len(COLUMNS)] * samples
    for sample, (first, *_) in found.items():
        judged = first.judged
        rows[sample] = (judged.confession.text, judged.reward, judged.verdict.unscored)
    for name, values in zip(COLUMNS, zip(*gather_object(rows), strict=True), strict=True):
        trainer._logs["extra"][PREFIX + name].extend(values)
