"""The policy is asked: the Engine over the trainer's own generation, a whole batch of confessions at once.

The trainer generates in batches and in its own thread, where its devices and contexts are; requests, judgments and
rewards are asynchronous.  So the answers' confessions are worked on in the event loop of a thread beside it: they ask
for their samples, one after the other; when every answer has asked, the trainer's thread samples them all, and the
judgments then run at once.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confession_plugin.chat import request_token_ids
from confession_plugin.confess import Confessor, Finished, Sampled
from confession_plugin.config import Config
from confession_plugin.errors import Unscored
from confession_plugin.reasons import Reason
from confession_plugin.records import Request, Rollout
from confession_plugin.texts import texts_of_confession

#: Token ids of the contexts and a token budget -> the confessions' token ids.
Sample = Callable[[list[list[int]], int], list[list[int]]]


@dataclass
class Wanted:
    """One confession to be sampled."""

    context: list[int]
    budget: int
    ids: asyncio.Future[list[int]]


class Wave:
    """The samples that a batch of answers asks for; complete when every answer has asked for all of its.

    Lives in one event loop.
    """

    def __init__(self, answers: int, samples_per_answer: int, ready: Callable[[list[Wanted]], None]) -> None:
        self._answers = answers
        self._each = samples_per_answer
        self._ready = ready
        self._wanted: list[Wanted] = []
        self._without = 0

    def leave(self) -> None:
        """An answer needs no samples."""
        self._without += 1
        self._look()

    async def sample(self, context: list[int], budget: int) -> list[int]:
        """A confession's token ids, once the whole batch is sampled."""
        wanted = Wanted(context, budget, asyncio.get_running_loop().create_future())
        self._wanted.append(wanted)
        self._look()
        return await wanted.ids

    def _look(self) -> None:
        if self._wanted and len(self._wanted) == self._each * (self._answers - self._without):
            self._ready(list(self._wanted))


class TrainerEngine:
    """The `confess.Engine` of one answer: continues its own tokens.

    Args:
        answered: token ids of prompt and answer.
        answer_start: where in them the answer begins.
        context: tokens that the model has positions for; None where it does not say.
    """

    def __init__(
        self,
        wave: Wave,
        tokenizer: Any,
        answered: list[int],
        answer_start: int,
        *,
        config: Config,
        context: int | None,
        end_ids: Sequence[int],
    ) -> None:
        self._wave, self._tokenizer, self._config = wave, tokenizer, config
        self._answered, self._answer_start, self._context = answered, answer_start, context
        self._end_ids = frozenset(end_ids)
        self._request_ids: list[int] = []
        self._budget = config.max_new_tokens

    def prepare(self, request: Request) -> None:
        """Tokenise the request and see what room it leaves."""
        self._request_ids = request_token_ids(
            self._tokenizer,
            request,
            self._answered,
            chat=self._config.request_format == "chat",
            answer_start=self._answer_start,
        )
        if self._context is not None:
            room = self._context - len(self._answered) - len(self._request_ids)
            if room < 1:
                self._wave.leave()
                raise Unscored(Reason.NO_ROOM)
            self._budget = min(self._budget, room)

    async def sample(self, number: int) -> Sampled:
        """Sample one confession, together with the batch's others."""
        before = self._answered + self._request_ids
        ids = await self._wave.sample(before, self._budget)
        if not ids:
            raise Unscored(Reason.ABORTED, "the trainer's generation gave no token")
        return Sampled(
            **texts_of_confession(self._tokenizer, before, ids, reasoning_end=self._config.reasoning_end),
            token_ids=ids,
            request_ids=self._request_ids,
            truncated=ids[-1] not in self._end_ids,
        )


@dataclass(frozen=True)
class Answer:
    """An answer about to be confessed."""

    rollout: Rollout
    start: int
    """Where in the rollout's token ids the answer begins."""


class Loop:
    """One event loop in a thread of its own, for a whole run: a judge's connections stay open."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start the coroutine there."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="confessions", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function there."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *args)


def confess_all(
    loop: Loop,
    confessor: Confessor,
    answers: Sequence[Answer],
    engine_of: Callable[[Wave, Answer], TrainerEngine],
    sample: Sample,
    samples_per_answer: int,
    at_most: int,
) -> list[list[Finished]]:
    """The confessions about each answer.

    Args:
        sample: the trainer's generation; called in this thread.
        at_most: rows of one generation.

    Raises:
        PluginError: a plugin decided wrongly.
        JudgeError: too many confessions have no score.
    """
    if not answers:
        return []
    asked: queue.SimpleQueue[list[Wanted] | None] = queue.SimpleQueue()

    async def all_of_them() -> list[list[Finished]]:
        wave = Wave(len(answers), samples_per_answer, asked.put)
        work = [asyncio.ensure_future(confessor.confess(one.rollout, engine_of(wave, one))) for one in answers]
        try:
            return list(await asyncio.gather(*work))
        finally:
            for one in work:
                one.cancel()

    future = loop.submit(all_of_them())
    future.add_done_callback(lambda _: asked.put(None))
    try:
        while (wanted := asked.get()) is not None:
            loop.call(_deliver, wanted, _in_batches(wanted, sample, at_most))
    except BaseException:
        future.cancel()
        raise
    found: list[list[Finished]] = future.result()
    return found


def _in_batches(wanted: Sequence[Wanted], sample: Sample, at_most: int) -> list[list[int]]:
    """The confessions' token ids, sampled `at_most` at a time; the few with less room by themselves."""
    by_budget: dict[int, list[int]] = defaultdict(list)
    for place, one in enumerate(wanted):
        by_budget[one.budget].append(place)
    found: list[list[int]] = [[] for _ in wanted]
    for budget, places in by_budget.items():
        for first in range(0, len(places), at_most):
            part = places[first : first + at_most]
            for place, ids in zip(part, sample([wanted[at].context for at in part], budget), strict=True):
                found[place] = [int(token) for token in ids]
    return found


def _deliver(wanted: Sequence[Wanted], found: Sequence[list[int]]) -> None:
    for one, ids in zip(wanted, found, strict=True):
        if not one.ids.done():
            one.ids.set_result(ids)
