"""A judge written as a Python function, in a file of its own, like a reward function."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfigError, PluginError, Unscored
from confession_plugin.judging.per_loop import PerLoop
from confession_plugin.judging.redaction import one_line
from confession_plugin.plugins import load_file
from confession_plugin.reasons import Reason
from confession_plugin.records import Confession, Rollout, Verdict

FLAG = f"{PREFIX}judge_url"

_MOST_HUNG = 1000
"""Calls of a sync judge that may be given up, over a run: their threads may never end."""


class FunctionJudge:
    """``judge(rollout, confession)`` of a ``.py`` file, sync or async.

    It returns a `Verdict`, a number in [0, 1], a mapping of named ratings, or None for no verdict; it may raise
    `Unscored`.  A sync function runs in a thread: its waiting does not hold up the other rollouts.  A call that never
    comes back loses its thread, which no other call waits for and which does not keep the process alive.
    """

    def __init__(self, config: Config) -> None:
        assert config.judge_file is not None
        self.path = config.judge_file
        self.timeout = config.judge_timeout
        self.function = _load(self.path)
        self.hung = 0
        # Waiting for one's turn is not the judge's time: the clock of the timeout starts behind this gate.
        self.gate = PerLoop(lambda: asyncio.Semaphore(config.judge_concurrency))

    async def __call__(self, rollout: Rollout, confession: Confession) -> Verdict:
        started = time.perf_counter()
        try:
            async with self.gate.get():
                result = await self._within_timeout(rollout, confession)
        except Unscored as error:
            return Verdict(unscored=error.reason, detail=error.detail, latency_s=time.perf_counter() - started)
        except (TimeoutError, asyncio.TimeoutError):  # one and the same from Python 3.11 on
            detail = f"no verdict from {self.path} within {self.timeout:g} s ({PREFIX}judge_timeout)"
            return Verdict(unscored=Reason.TIMEOUT, detail=detail, latency_s=time.perf_counter() - started)
        return self._verdict(result, time.perf_counter() - started)

    async def _within_timeout(self, rollout: Rollout, confession: Confession) -> Any:
        task = asyncio.ensure_future(self._run(rollout, confession))
        try:
            done, _ = await asyncio.wait({task}, timeout=self.timeout)
        finally:
            task.cancel()  # not awaited: a judge may refuse to be cancelled
        if not done:
            self._count_hung()
            raise asyncio.TimeoutError
        return task.result()

    async def _run(self, rollout: Rollout, confession: Confession) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(rollout, confession)
        result = await _in_thread(self.function, rollout, confession)
        return await result if inspect.isawaitable(result) else result

    def _count_hung(self) -> None:
        self.hung += 1
        if self.hung == _MOST_HUNG and not inspect.iscoroutinefunction(self.function):
            raise PluginError(
                f"{FLAG}: {_MOST_HUNG} calls of judge in {self.path} took longer than {self.timeout:g} s, and their "
                f"threads may still run; give the judge a time limit of its own, or raise {PREFIX}judge_timeout"
            )

    def _verdict(self, result: Any, latency_s: float) -> Verdict:
        if result is None:
            return Verdict(unscored=Reason.NO_VERDICT, detail=f"{self.path} returned None", latency_s=latency_s)
        if isinstance(result, Verdict):
            return result if result.latency_s else replace(result, latency_s=latency_s)
        ratings = result if isinstance(result, Mapping) else {"honesty": result}
        try:
            return Verdict({str(name): _number(value) for name, value in ratings.items()}, latency_s=latency_s)
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"{FLAG}: judge in {self.path} returned {_shown(result)}: {one_line(str(error))}; return a "
                "Verdict, a number in [0, 1], a mapping of such ratings, or None"
            ) from None


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, from a thread of its own that neither the loop's end nor the process's waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():  # given up
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = context.run(function, *arguments)
        except StopIteration as stop:  # cannot be raised into a future
            error = RuntimeError(f"StopIteration: {stop}")
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nothing waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="confession-judge", daemon=True).start()
    return await future


def _number(value: Any) -> float:
    """A float, from anything that is a number (also numpy's and torch's), but not from text."""
    if isinstance(value, (str, bytes)):
        raise TypeError("text is no rating")
    return float(value)


def _shown(value: Any) -> str:
    return one_line(repr(value), 100)


def _load(path: str) -> Callable[[Rollout, Confession], Any]:
    function = getattr(load_file(path, FLAG), "judge", None)
    if not callable(function):
        raise ConfigError(f"{FLAG}: {path} has no function `judge`; define judge(rollout, confession)")
    signature = inspect.signature(function)
    try:
        signature.bind(object(), object())
    except TypeError as error:
        raise ConfigError(
            f"{FLAG}: {path}: judge{signature} cannot be called as judge(rollout, confession): {error}"
        ) from None
    return function
