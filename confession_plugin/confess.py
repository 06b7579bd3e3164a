"""From an answer to a judged confession, for any host: request -> sample -> parse -> judge -> reward -> record.

The host supplies an `Engine` that samples text in answer to a request; everything else is the plugins'.  The rollout
workers run this, and so does the judge's audit, whose engine repeats reports that somebody wrote by hand: what a
report earns is decided in one place.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from confession_plugin.errors import PluginError, Unscored
from confession_plugin.judging.failure_budget import FailureBudget
from confession_plugin.plugins import PluginManager
from confession_plugin.records import Confession, Judged, Parsed, Request, Rollout, Verdict
from confession_plugin.report import Unreadable


@dataclass(frozen=True)
class Sampled:
    """One sampled confession."""

    text: str
    """Decoded, special tokens removed, reasoning included."""
    visible: str | None = None
    """The text without its reasoning: all that is read as a report; None where the engine does not tell."""
    token_ids: Sequence[int] = ()
    """The confession's tokens."""
    request_ids: Sequence[int] = ()
    """Tokens between answer and confession."""
    log_probs: Sequence[float] | None = None
    """Of each token, where the engine records them."""
    truncated: bool = False
    """It ran into its token budget."""


class Engine(Protocol):
    """What a host supplies: the policy, about to be asked about one answer."""

    def prepare(self, request: Request) -> None:
        """Take the request, once per answer.

        Raises:
            Unscored: nothing can be sampled, for a reason that is not the policy's (no room in the context).
        """

    async def sample(self, number: int) -> Sampled:
        """Confession `number` (from 0) about the answer.

        Raises:
            Unscored: this one could not be sampled, for a reason that is not the policy's (an aborted generation).
        """


@dataclass(frozen=True)
class Written:
    """One confession that nothing has judged yet."""

    rollout: Rollout
    """The answer it is about."""
    confession: Confession
    """What the policy wrote, and what could be read of it."""
    sampled: Sampled | None
    """None where nothing was sampled."""
    unscored: Unscored | None = None
    """Why nothing was sampled, for a reason that is not the policy's."""


@dataclass(frozen=True)
class Finished:
    """One confession with everything that was decided about it."""

    judged: Judged
    """Its texts, verdict and reward, as observers see them."""
    sampled: Sampled | None
    """None where nothing was sampled."""
    observer_failures: int = 0
    """Observers that failed when they were shown it."""


_Next = TypeVar("_Next")
_Confessed = TypeVar("_Confessed", Written, Finished)


class Confessor:
    """Asks for confessions about answers, has them judged, and shows them to the observers.

    Args:
        plugins: configured plugins; their hooks decide.
        samples_per_answer: confessions about each answer.
        budget: how many missing scores the run accepts; None for no limit.
    """

    def __init__(self, plugins: PluginManager, *, samples_per_answer: int = 1, budget: FailureBudget | None = None):
        self._hook = plugins.hook
        self._failures = plugins.observer_failures
        self._samples_per_answer = samples_per_answer
        self._budget = budget

    async def confess(self, rollout: Rollout, engine: Engine) -> list[Finished]:
        """The confessions about one answer; one unsampled and unscored one where the engine has no room for any.

        Raises:
            PluginError: a plugin decided wrongly.
            JudgeError: too many confessions have no score.
        """
        return await self._all(rollout, engine, self.judge)

    async def write(self, rollout: Rollout, engine: Engine) -> list[Written]:
        """The same confessions, each to be given to `judge` later, or never: nothing about them is recorded yet."""
        return await self._all(rollout, engine, _as_it_is)

    async def judge(self, written: Written) -> Finished:
        """What a written confession earns; shown to the observers, counted against the budget."""
        rollout, confession = written.rollout, written.confession
        if written.unscored is not None:  # the engine's doing, not the policy's: no score
            verdict = Verdict(unscored=written.unscored.reason, detail=written.unscored.detail)
            return self._record(Judged(rollout, confession, verdict, None), None)
        verdict = await self._verdict(rollout, confession)
        return self._record(Judged(rollout, confession, verdict, self._reward(verdict, confession)), written.sampled)

    async def _all(self, rollout: Rollout, engine: Engine, then: Callable[[Written], Awaitable[_Next]]) -> list[_Next]:
        """Sample every confession about one answer; what comes next for one does not wait for the others."""
        request: Request = self._decided("confession_request", rollout=rollout)
        try:
            engine.prepare(request)
        except Unscored as error:
            return [await then(_unsampled(rollout, request, 0, error))]

        async def one(number: int) -> _Next:
            return await then(await self._written(rollout, request, engine, number))

        return list(await asyncio.gather(*map(one, range(self._samples_per_answer))))

    async def _written(self, rollout: Rollout, request: Request, engine: Engine, number: int) -> Written:
        try:
            sampled = await engine.sample(number)
        except Unscored as error:
            return _unsampled(rollout, request, number, error)
        visible = sampled.text if sampled.visible is None else sampled.visible
        parsed: Parsed = self._decided("confession_parse", text=visible, truncated=sampled.truncated, rollout=rollout)
        if parsed.problem == Unreadable.EMPTY.value and sampled.text.strip():
            parsed = replace(parsed, problem=f"{Unreadable.ONLY_REASONING.value}: nothing but reasoning")
        confession = Confession(
            request=request.text,
            text=sampled.text,
            visible=sampled.visible,
            report=parsed.report,
            problem=parsed.problem,
            admits=parsed.admits,
            grade=parsed.grade,
            truncated=sampled.truncated,
            num_tokens=len(sampled.token_ids),
            request_tokens=len(sampled.request_ids),
            number=number,
            request_ids=tuple(sampled.request_ids),
            token_ids=tuple(sampled.token_ids),
            log_probs=None if sampled.log_probs is None else tuple(sampled.log_probs),
        )
        return Written(rollout, confession, sampled)

    async def _verdict(self, rollout: Rollout, confession: Confession) -> Verdict:
        if not confession.parsed:
            # Unreadable is the policy's doing and earns the lowest reward; unscored would let it dodge the judge.
            return Verdict(ratings={"readable": 0.0}, detail=confession.problem or "")
        started = time.monotonic()
        verdict: Verdict | None
        try:
            verdict = self._hook.confession_judge(rollout=rollout, confession=confession)
            if inspect.isawaitable(verdict):
                verdict = await verdict
        except Unscored as error:
            verdict = Verdict(unscored=error.reason, detail=error.detail)
        if verdict is None:
            raise PluginError("no plugin judged a confession: all that implement confession_judge gave None")
        if not verdict.latency_s:
            verdict = replace(verdict, latency_s=time.monotonic() - started)
        return verdict

    def _reward(self, verdict: Verdict, confession: Confession) -> float | None:
        if not verdict.scored:
            return None
        return float(self._decided("confession_reward", verdict=verdict, confession=confession))

    def _decided(self, hook: str, **record: Any) -> Any:
        decision = getattr(self._hook, hook)(**record)
        if decision is None:
            raise PluginError(f"no plugin decided {hook}: all that implement it gave None")
        return decision

    def _record(self, judged: Judged, sampled: Sampled | None) -> Finished:
        before = sum(self._failures.values())
        self._hook.confession_judged(record=judged)
        # An unreadable confession was shown to no judge: it says nothing about how many scores are missing.
        if self._budget is not None and (judged.confession.parsed or sampled is None):
            self._budget.add(judged.verdict)
        return Finished(judged, sampled, sum(self._failures.values()) - before)


async def _as_it_is(written: Written) -> Written:
    return written


def _unsampled(rollout: Rollout, request: Request, number: int, error: Unscored) -> Written:
    confession = Confession(request=request.text, text="", problem=error.reason, number=number)
    return Written(rollout, confession, None, unscored=error)


def first_sampled(confessions: Sequence[_Confessed]) -> list[_Confessed]:
    """The sampled ones first: a host's sample needs a confession span before it can have extra confessions."""
    return sorted(confessions, key=lambda one: one.sampled is None)
