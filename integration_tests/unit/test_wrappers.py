"""Hook wrappers are held to the rules of other implementations: deciders' fail in one line, observers' quietly."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from confession_plugin import Confession, Judged, Parsed, Rollout, Unscored, Verdict, hookimpl
from confession_plugin.config import Config
from confession_plugin.errors import PluginError
from confession_plugin.plugins import PluginManager, configured, fresh_copies

ROLLOUT = Rollout(prompt="p", answer="7", transcript="7")
CONFESSION = Confession(request="Report.", text="{}", report={"ok": True}, admits=False)
RECORD = Judged(ROLLOUT, CONFESSION, Verdict(ratings={"honest": 0.5}), 0.5)
HERE = r"\(.*test_wrappers.py:\d+\)"


def manager_with(*plugins: object) -> PluginManager:
    manager = configured(Config())
    for number, plugin in enumerate(plugins):
        manager.register(plugin, f"plugin {number}")
    return manager


def parse(manager: PluginManager) -> Any:
    return manager.hook.confession_parse(text="", truncated=False, rollout=ROLLOUT)


class Before:
    @hookimpl(wrapper=True)
    def confession_parse(self, text: str) -> Any:
        raise KeyError("nothing\nhere")
        yield

    @hookimpl(wrapper=True)
    def confession_judged(self, record: Judged) -> Any:
        raise KeyError("nothing here")
        yield


class After:
    @hookimpl(wrapper=True)
    def confession_parse(self, text: str) -> Any:
        yield
        raise KeyError("nothing here")

    @hookimpl(wrapper=True)
    def confession_judged(self, record: Judged) -> Any:
        yield
        raise KeyError("nothing here")


class OldBefore:
    @hookimpl(hookwrapper=True)
    def confession_parse(self, text: str) -> Any:
        raise KeyError("nothing here")
        yield

    @hookimpl(hookwrapper=True)
    def confession_judged(self, record: Judged) -> Any:
        raise KeyError("nothing here")
        yield


class OldAfter:
    @hookimpl(hookwrapper=True)
    def confession_parse(self, text: str) -> Any:
        yield
        raise KeyError("nothing here")

    @hookimpl(hookwrapper=True)
    def confession_judged(self, record: Judged) -> Any:
        yield
        raise KeyError("nothing here")


class NoYield:
    @hookimpl(wrapper=True)
    def confession_parse(self, text: str) -> Any:
        yield from ()

    @hookimpl(wrapper=True)
    def confession_judged(self, record: Judged) -> Any:
        yield from ()


class TwoYields:
    @hookimpl(wrapper=True)
    def confession_parse(self, text: str) -> Any:
        yield
        yield

    @hookimpl(wrapper=True)
    def confession_judged(self, record: Judged) -> Any:
        yield
        yield


class Watched:
    def __init__(self) -> None:
        self.seen: list[Judged] = []

    @hookimpl
    def confession_judged(self, record: Judged) -> None:
        self.seen.append(record)


RAISING = [Before, After, OldBefore, OldAfter]


@pytest.mark.parametrize("plugin", RAISING)
def test_a_deciders_wrapper_that_raises_is_named_with_file_and_line(plugin: Any) -> None:
    with pytest.raises(PluginError, match=r"plugin 'plugin 0' failed in confession_parse: KeyError: .*" + HERE):
        parse(manager_with(plugin()))


@pytest.mark.parametrize("plugin", [NoYield, TwoYields])
def test_a_deciders_wrapper_has_one_yield(plugin: Any) -> None:
    with pytest.raises(PluginError, match=r"plugin 'plugin 0' failed in confession_parse: .* a wrapper has one yield"):
        parse(manager_with(plugin()))


@pytest.mark.parametrize("plugin", [*RAISING, NoYield, TwoYields])
def test_an_observers_wrapper_fails_quietly_and_is_counted(plugin: Any) -> None:
    watched = Watched()
    manager = manager_with(watched, plugin())
    for _ in range(3):
        manager.hook.confession_judged(record=RECORD)
    assert watched.seen == [RECORD] * 3
    assert manager.observer_failures == {("plugin 1", "confession_judged"): 3}


def test_what_a_wrapper_gives_is_checked_and_what_it_passes_on_is_not_its_word() -> None:
    class Changes:
        @hookimpl(wrapper=True)
        def confession_parse(self, text: str) -> Any:
            yield
            return "a report"

    class PassesOn:
        @hookimpl(wrapper=True)
        def confession_parse(self, text: str) -> Any:
            return (yield)

    with pytest.raises(PluginError, match=r"plugin 'plugin 0': confession_parse gave 'a report'; give .*" + HERE):
        parse(manager_with(Changes()))
    manager = manager_with(PassesOn())
    assert isinstance(parse(manager), Parsed) and manager.decided_by["confession_parse"] == "inject"


def test_an_error_inside_goes_through_a_wrapper_or_is_caught_by_it() -> None:
    class Broken:
        @hookimpl
        def confession_parse(self, text: str) -> Any:
            raise RuntimeError("inside")

    class PassesOn:
        @hookimpl(wrapper=True)
        def confession_parse(self, text: str) -> Any:
            return (yield)

    class Catches:
        @hookimpl(wrapper=True)
        def confession_parse(self, text: str) -> Any:
            try:
                return (yield)
            except PluginError:
                return Parsed(problem="schema: caught")

    with pytest.raises(PluginError, match=r"plugin 'plugin 0' failed in confession_parse: RuntimeError: inside"):
        parse(manager_with(Broken(), PassesOn()))
    assert parse(manager_with(Broken(), Catches())).problem == "schema: caught"


def test_a_wrapper_around_the_judge_may_wait_for_its_verdict() -> None:
    class Judge:
        @hookimpl
        async def confession_judge(self, rollout: Rollout) -> Verdict:
            await asyncio.sleep(0)
            return Verdict(ratings={"honest": 0.5})

    class Around:
        def __init__(self, error: Exception | None) -> None:
            self.error = error

        @hookimpl(wrapper=True)
        def confession_judge(self, rollout: Rollout) -> Any:
            pending = yield

            async def waited() -> Verdict:
                verdict = await pending
                if self.error:
                    raise self.error
                return Verdict(ratings={"honest": verdict.ratings["honest"] / 2})

            return waited()

    def judged(error: Exception | None) -> Any:
        hook = manager_with(Judge(), Around(error)).hook
        return asyncio.run(hook.confession_judge(rollout=ROLLOUT, confession=CONFESSION))

    assert judged(None).ratings == {"honest": 0.25}
    with pytest.raises(Unscored):
        judged(Unscored("timeout"))
    with pytest.raises(PluginError, match=r"plugin 'plugin 1' failed in confession_judge: ValueError: no .*" + HERE):
        judged(ValueError("no"))


def test_an_object_that_cannot_be_copied_is_one_line() -> None:
    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        @hookimpl
        def confession_reward(self, verdict: Verdict) -> float:
            return 0.5

    manager = manager_with(Locked())
    with pytest.raises(PluginError) as caught:
        fresh_copies(manager, Config(), {"confession_reward"})
    text = str(caught.value)
    assert text.startswith("plugin 'plugin 0': the seal check needs a copy of this Locked object") and "\n" not in text
    assert "cannot pickle" in text and "on first use" in text
