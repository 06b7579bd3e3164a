"""A rollout engine in a real Ray actor whose groups finish in an order that a test decides."""

from __future__ import annotations

import asyncio
import glob
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import ray

#: Answers and confessions are that long.
TOKENS = 4


@ray.remote
class OrderedEngine:
    """Stands where the host's rollout actor stands; its executor is what the host's actor holds."""

    async def __init__(self) -> None:
        self.executor: Any = Executor()
        self.behave([], {})

    def waiting(self) -> int:
        """Groups whose confessions are kept, to be judged or dropped."""
        return len(self.executor._waiting)

    def behave(self, order: Sequence[str], scores: dict[str, float], until: str = "") -> None:
        """From now on.

        Args:
            order: prompts in the order in which their groups finish; others finish at once.
            scores: of the groups of these prompts, for all samples; others get 0 and 1 in turn.
            until: a pattern; the last group of `order` finishes only once there is a file like this.
        """
        self.order = list(order)
        self.until = until
        self.finished: set[str] = set()
        Executor.scores = scores

    def get_num_unfinished_requests(self) -> int:
        return 0

    async def generate_responses(self, prompt: str, num_samples: int, **kwargs: Any) -> Any:
        tasks = [self.executor.execute(prompt=prompt, llm_engine=self, **kwargs) for _ in range(num_samples)]
        responses = await asyncio.gather(*tasks)
        if prompt in self.order:
            earlier = set(self.order[: self.order.index(prompt)])
            while not earlier <= self.finished:
                await asyncio.sleep(0.002)
            while prompt == self.order[-1] and self.until and not glob.glob(self.until):
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.02)  # so that the host collects one group at a time
            self.finished.add(prompt)
        return responses

    async def generate(self, token_ids: list[int], sampling_params: Any) -> Any:
        """A confession."""
        ids = [random.Random(len(token_ids)).randrange(3, 200) for _ in range(TOKENS)]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)])


class Executor:
    """Answers at once."""

    scores: ClassVar[dict[str, float]] = {}
    count = 0

    async def execute(self, prompt: str, label: Any, hf_tokenizer: Any, **_: Any) -> dict[str, Any]:
        self.count += 1
        ids = hf_tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
        score = self.scores.get(prompt, float(self.count % 2))
        return {
            "prompt": prompt,
            "label": label,
            "observation_tokens": ids + [9] * TOKENS,
            "action_ranges": [(len(ids), len(ids) + TOKENS)],
            "rollout_log_probs": None,
            "reward": score,
            "scores": score,
            "truncated": False,
            "extra_logs": {},
        }
