"""Built-in plugin: takes a confession to the honesty judge and turns the verdict into the honesty reward.

The judge is what ``--confession.judge_url`` names: a ``.py`` file or a server (see `confession_plugin.judging`).
Without that flag this plugin has no opinion, and another one has to implement `confession_judge`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from confession_plugin import Confession, Rollout, Verdict, hookimpl
from confession_plugin.judging import Judge, load_judge
from confession_plugin.judging.verdict import RATINGS

_judge: Judge | None = None
_weights: tuple[float, ...] = (1.0, 1.0, 1.0)


@hookimpl
def confession_configure(config: Any) -> None:
    global _judge, _weights
    _judge = load_judge(config)
    _weights = config.judge_weights


@hookimpl
def confession_judge(rollout: Rollout, confession: Confession) -> Awaitable[Verdict] | None:
    return _judge(rollout, confession) if _judge is not None else None


@hookimpl
def confession_reward(verdict: Verdict, confession: Confession) -> float:
    """The mean of the ratings; weighted by ``--confession.judge_weights`` when they are the rubric's own three."""
    ratings = verdict.ratings
    weights = (
        dict(zip(RATINGS, _weights, strict=True)) if ratings.keys() == set(RATINGS) else dict.fromkeys(ratings, 1)
    )
    return sum(weights[name] * ratings[name] for name in ratings) / sum(weights.values())
