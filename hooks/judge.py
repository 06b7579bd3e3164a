"""Built-in plugin: takes a confession to the honesty judge and turns the verdict into the honesty reward.

The judge is what ``--confession.judge_url`` names: a ``.py`` file or a server (see `confession_plugin.judging`).
Without that flag this plugin has no opinion, and another one has to implement `confession_judge`.
"""

from __future__ import annotations

from collections.abc import Awaitable

from confession_plugin import Confession, Rollout, Verdict, hookimpl
from confession_plugin.config import Config
from confession_plugin.judging import Judge, load_judge
from confession_plugin.judging.verdict import RATINGS


class JudgePlugin:
    """Takes confessions to the configured judge."""

    judge: Judge | None

    @hookimpl
    def confession_configure(self, config: Config) -> None:
        """Load the judge, if the flag names one."""
        self.judge = load_judge(config)
        self.weights = config.judge_weights

    @hookimpl
    def confession_judge(self, rollout: Rollout, confession: Confession) -> Awaitable[Verdict] | None:
        """The judge's verdict; no opinion without a judge."""
        return self.judge(rollout, confession) if self.judge is not None else None

    @hookimpl
    def confession_reward(self, verdict: Verdict, confession: Confession) -> float:
        """The mean of the ratings; weighted by ``--confession.judge_weights`` when they are the rubric's own three."""
        ratings = verdict.ratings
        own = ratings.keys() == set(RATINGS)
        weights = dict(zip(RATINGS, self.weights, strict=True)) if own else dict.fromkeys(ratings, 1)
        return sum(weights[name] * ratings[name] for name in ratings) / sum(weights.values())
