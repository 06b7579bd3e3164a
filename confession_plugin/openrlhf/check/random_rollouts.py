"""Made-up rollouts for the simulator: executor responses with and without confessions, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from confession_plugin.lattices import REWARDS, RewardOf
from confession_plugin.openrlhf.check.simulator import VOCABULARY
from confession_plugin.openrlhf.executor import ConfessionTokens
from confession_plugin.sample_stats import Value

__all__ = ["REWARDS", "RandomRollouts", "RewardOf", "by_content", "responses"]


def by_content(reward: RewardOf) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A reward model's scores: (sequences, attention_mask, its own scores) -> scores by what it was shown."""

    def scores(sequences: Tensor, attention_mask: Tensor, own: Tensor) -> Tensor:
        samples = (sequences * attention_mask).sum(-1).tolist()
        groups = sequences[:, :3].sum(-1).tolist()  # the prompt is longer than that
        return own.new_tensor([reward(int(one), int(of)) for one, of in zip(samples, groups, strict=True)])

    return scores


@dataclass(frozen=True)
class RandomRollouts:
    """A rollout batch to make up: what is random in it is drawn from `seed` alone.

    `asked`: which groups confess.  `unscored`: which confessing samples (by index in the batch) have no score.
    """

    groups: int = 4
    samples: int = 4
    asked: Sequence[bool] = (True, False, True, True)
    unscored: Sequence[int] = ()
    confession_tokens: int | None = None
    samples_per_answer: int = 1
    two_turns: bool = False
    with_log_probs: bool = True
    with_rewards: bool = True
    rewards_as: Literal["number", "list"] = "number"
    """list: of one number, as every reward server sends it."""
    seed: int = 0


def responses(
    rollouts: RandomRollouts,
    *,
    confess: bool = True,
    honesty: RewardOf | None = None,
    answer_reward: RewardOf | None = None,
) -> list[Any]:
    """Executor responses.  The same answers with and without `confess`.

    `honesty`, `answer_reward`: in place of the random ones.
    """
    made: list[dict[str, Any]] = []
    for sample in range(rollouts.groups * rollouts.samples):
        draw = random.Random(f"{rollouts.seed}:{sample}")
        group = sample // rollouts.samples
        made.append(_answer(draw, random.Random(f"{rollouts.seed}:group:{group}"), rollouts))
        if answer_reward is not None:
            made[-1]["reward"] = made[-1]["scores"] = answer_reward(sample, group)
        if rollouts.rewards_as == "list":
            made[-1] |= {"reward": [made[-1]["reward"]], "scores": [made[-1]["scores"]]}
        if confess and rollouts.asked[group % len(rollouts.asked)]:
            made[-1]["confession"] = _confessions(sample, rollouts, honesty)
    return made


def _confessions(sample: int, rollouts: RandomRollouts, honesty: RewardOf | None) -> ConfessionTokens:
    """A sample's confession and its extra: another text and reward each, after the same request."""
    first, *others = (
        _confession(random.Random(f"{rollouts.seed}:{sample}:c{number or ''}"), sample, number, rollouts, honesty)
        for number in range(rollouts.samples_per_answer)
    )
    return replace(first, extra=tuple(replace(other, request=first.request) for other in others))


def _answer(draw: random.Random, group: random.Random, rollouts: RandomRollouts) -> dict[str, Any]:
    tokens = _tokens(group, group.randint(3, 6))
    ranges = []
    for turn in range(2 if rollouts.two_turns else 1):
        if turn:
            tokens += _tokens(draw, draw.randint(1, 3))  # the environment speaks
        start = len(tokens)
        tokens += _tokens(draw, draw.randint(2, 7))
        ranges.append((start, len(tokens)))
    reward = round(draw.random(), 3)
    return {
        "prompt": "prompt",
        "label": "label",
        "observation_tokens": tokens,
        "action_ranges": ranges,
        "rollout_log_probs": [-3.5 + draw.uniform(-0.4, 0.4) for _ in tokens] if rollouts.with_log_probs else None,
        "reward": reward if rollouts.with_rewards else None,
        "scores": reward if rollouts.with_rewards else None,
        "truncated": draw.random() < 0.3,
        "extra_logs": {},
    }


def _confession(
    draw: random.Random, sample: int, number: int, rollouts: RandomRollouts, honesty: RewardOf | None
) -> ConfessionTokens:
    length = rollouts.confession_tokens or draw.randint(1, 9)
    reward = draw.random()
    request, confession = _tokens(draw, 3), _tokens(draw, length)
    scored = sample + number not in rollouts.unscored
    # Members that share a baseline: the group's confessions, or those about one answer.
    group = sample // rollouts.samples if rollouts.samples_per_answer == 1 else sample
    numbers: dict[str, Value] = {
        "asked": 1,
        "step": 1,
        "length": length,
        "suffix": length + len(request),
        "scored": scored,
        "reward": (honesty(sample + number, group) if honesty is not None else reward) if scored else 0.0,
        "parsed": 1,
    }
    log_probs = [-3.5 + draw.uniform(-0.4, 0.4) for _ in confession] if rollouts.with_log_probs else None
    return ConfessionTokens(request, confession, log_probs, numbers)


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(1, VOCABULARY) for _ in range(count)]
