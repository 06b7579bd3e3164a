"""From an answer to a judged confession, over an engine in memory (`confess.Engine` is our own protocol)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from confession_plugin import Confession, Judged, Parsed, Request, Rollout, Unscored, Verdict, hookimpl
from confession_plugin.confess import Confessor, Finished, Sampled, first_sampled
from confession_plugin.config import Config
from confession_plugin.errors import JudgeError, PluginError
from confession_plugin.judging.audit import Case, judge_all, load_cases
from confession_plugin.judging.failure_budget import FailureBudget
from confession_plugin.plugins import PluginManager, configured
from confession_plugin.records import BatchStats
from confession_plugin.sample_stats import STATS, batch_stats, numbers_of

ROLLOUT = Rollout(prompt="What is 3 + 4?", answer="7", transcript="7", label="7", extra={"violation": 1.0})
REPORT = json.dumps(
    {
        "compliance_analysis": [
            {"objective": "The sum is right.", "analysis": "3 + 4 is 7.", "compliance": "fully_complied"}
        ],
        "uncertainties_and_conflicts": [],
        "overall_compliance_grade": 7,
    }
)


class Told:
    """An engine that answers with what it was told, or cannot sample."""

    def __init__(self, *texts: str | Unscored, prepare: Unscored | None = None) -> None:
        self.texts = texts
        self.refusal = prepare
        self.requests: list[Request] = []

    def prepare(self, request: Request) -> None:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal

    async def sample(self, number: int) -> Sampled:
        await asyncio.sleep(0)
        text = self.texts[number]
        if isinstance(text, Unscored):
            raise text
        return Sampled(text, token_ids=[number, *range(len(text))], request_ids=[1, 2, 3], log_probs=[-0.5])


class Watched:
    """A plugin that judges, and writes down every hook call in order."""

    def __init__(self, judge: Any = None) -> None:
        self.calls: list[str] = []
        self.records: list[Judged] = []
        self.judge = judge or (lambda confession: Verdict({"honest": 0.5, "exact": 1.0}))

    @hookimpl
    def confession_request(self, rollout: Rollout) -> None:
        self.calls.append("request")

    @hookimpl
    def confession_parse(self, text: str) -> None:
        self.calls.append("parse")

    @hookimpl
    def confession_judge(self, confession: Confession) -> Any:
        self.calls.append("judge")
        return self.judge(confession)

    @hookimpl
    def confession_reward(self, verdict: Verdict) -> None:
        self.calls.append("reward")

    @hookimpl
    def confession_judged(self, record: Judged) -> None:
        self.calls.append("judged")
        self.records.append(record)


def plugins_with(*plugins: object) -> PluginManager:
    manager = configured(Config(enable=True))
    for number, plugin in enumerate(plugins):
        manager.register(plugin, f"plugin {number}")
    return manager


def confess(plugins: PluginManager, engine: Told, **options: Any) -> list[Finished]:
    return asyncio.run(Confessor(plugins, **options).confess(ROLLOUT, engine))


def test_the_order_of_the_pipeline_and_what_it_records() -> None:
    world, engine = Watched(), Told(REPORT)
    (finished,) = confess(plugins_with(world), engine)
    assert world.calls == ["request", "parse", "judge", "reward", "judged"]
    record = finished.judged
    assert world.records == [record] and record.rollout is ROLLOUT
    assert record.reward == 0.75 and record.verdict.scored and record.verdict.latency_s > 0
    confession = record.confession
    assert confession.text == REPORT and confession.admits is False and confession.grade == 7.0
    assert confession.request == engine.requests[0].text and len(engine.requests) == 1
    assert confession.token_ids == (0, *range(len(REPORT))) and confession.num_tokens == len(REPORT) + 1
    assert confession.request_ids == (1, 2, 3) and confession.request_tokens == 3 and confession.log_probs == (-0.5,)


@pytest.mark.parametrize("text", ["", "I did well.", REPORT[:-20], "<think>" + REPORT])
def test_an_unreadable_confession_earns_the_lowest_reward_and_is_not_judged(text: str) -> None:
    world = Watched(lambda confession: pytest.fail("judged"))
    verdicts: list[Verdict] = []

    class Rewarded:
        @hookimpl
        def confession_reward(self, verdict: Verdict) -> None:
            verdicts.append(verdict)

    (finished,) = confess(plugins_with(world, Rewarded()), Told(text))
    assert [verdict.ratings for verdict in verdicts] == [{"readable": 0.0}]  # a user's reward sees it, too
    assert finished.judged.reward == 0.0 and finished.judged.verdict.scored
    assert finished.judged.confession.problem and not finished.judged.confession.parsed
    assert world.calls == ["request", "parse", "reward", "judged"]


@pytest.mark.parametrize("where", ["prepare", "sample"])
def test_what_could_not_be_sampled_is_unscored(where: str) -> None:
    """It is the engine's doing: no reward at all, and it is shown to the observers with the reason."""
    world, reason = Watched(), Unscored("no_room", "none left")
    engine = Told(REPORT, prepare=reason) if where == "prepare" else Told(reason)
    (finished,) = confess(plugins_with(world), engine)
    assert finished.sampled is None and finished.judged.reward is None
    assert finished.judged.verdict.unscored == "no_room" and finished.judged.verdict.detail == "none left"
    assert world.calls == ["request", "judged"]


def test_several_confessions_about_one_answer() -> None:
    """One request for all, each judged on its own; one that was not sampled costs the others nothing."""
    world = Watched(lambda confession: Verdict({"honest": 1.0 if "7" in confession.text else 0.0}))
    engine = Told("no report", Unscored("aborted"), REPORT)
    finished = confess(plugins_with(world), engine, samples_per_answer=3)
    assert [one.judged.confession.number for one in finished] == [0, 1, 2]
    assert [one.judged.reward for one in finished] == [0.0, None, 1.0]
    assert len(engine.requests) == 1 and world.calls.count("judge") == 1 and len(world.records) == 3
    assert [one.judged.confession.number for one in first_sampled(finished)] == [0, 2, 1]


def silent(confession: Confession) -> Verdict:
    raise Unscored("timeout", "no word")


@pytest.mark.parametrize(
    ("judge", "engine"),
    [(silent, Told(REPORT)), (None, Told(REPORT, prepare=Unscored("no_room"))), (None, Told(Unscored("aborted")))],
)
def test_every_missing_score_counts_towards_the_limit(judge: Any, engine: Told) -> None:
    """A judge without a word, no room, an aborted generation: a run that trains on nothing stops."""
    budget = FailureBudget(0.02)  # more than one of 64
    plugins = plugins_with(Watched(judge))
    confess(plugins, engine, budget=budget)
    with pytest.raises(JudgeError, match=r"2 of the last 2 .* could not be scored \((timeout|no_room|aborted) 2\)"):
        confess(plugins, engine, budget=budget)


def test_a_judge_file_without_a_score_stops_with_its_own_words(tmp_path: Path) -> None:
    """That the line of a `JudgeError` is a run's last one, exit status 3, is seen in ``runs/test_judge_faults.py``."""
    (tmp_path / "gone.py").write_text(
        "from confession_plugin import Unscored\ndef judge(rollout, confession): raise Unscored('gone', 'no route')"
    )
    manager = configured(Config(enable=True, judge_url=str(tmp_path / "gone.py")))
    with pytest.raises(JudgeError, match=r"could not be scored \(gone 1\); .*no route.*--confession.max_unscored"):
        confess(manager, Told(REPORT), budget=FailureBudget(0.0))


def test_an_unreadable_confession_does_not_count_as_a_score_or_a_missing_one() -> None:
    budget = FailureBudget(0.0)
    for _ in range(3):
        confess(plugins_with(Watched()), Told("nothing"), budget=budget)
    assert not budget.reasons


def test_observers_see_everything_and_cannot_hurt() -> None:
    class Broken:
        @hookimpl
        def confession_judged(self, record: Judged) -> None:
            raise RuntimeError("disk full")

    world = Watched()
    manager = plugins_with(world, Broken())
    (finished,) = confess(manager, Told(REPORT))
    assert finished.judged.reward == 0.75 and len(world.records) == 1
    assert manager.observer_failures["plugin 1", "confession_judged"] == 1
    assert finished.observer_failures == 1  # which travels to the trainer
    assert confess(manager, Told(REPORT, REPORT), samples_per_answer=2)[1].observer_failures == 1


def test_a_run_without_a_judge_stops() -> None:
    with pytest.raises(PluginError, match="confession_judge gave None"):
        confess(plugins_with(), Told(REPORT))


# ── The audit and a run agree ──


class Picky:
    """A parser and a judge of a user's own."""

    @hookimpl
    def confession_parse(self, text: str) -> Parsed:
        return Parsed(report=text) if "objective" in text else Parsed(problem="unparsable: no objective")

    @hookimpl
    async def confession_judge(self, rollout: Rollout, confession: Confession) -> Verdict:
        await asyncio.sleep(0)
        if "vague" in confession.text:
            raise Unscored("refused", "too vague")
        return Verdict({"length": min(len(confession.text), 1000) / 1000})


class Blind(Picky):
    """A parser that reads nothing: the audit once judged what no run would have judged."""

    @hookimpl
    def confession_parse(self, text: str) -> Parsed:
        return Parsed(problem="unparsable: blind")


def cases() -> list[Case]:
    from confession_plugin.judging.audit import CASES

    odd = [
        Case(f"odd {number}", "odd", ROLLOUT, text)
        for number, text in enumerate(["", "vague objective", "7", REPORT[:-9], f"<think>{REPORT}</think>"])
    ]
    return load_cases(str(CASES)) + odd


@pytest.mark.parametrize("user", [Picky, Blind])
def test_the_audit_pays_what_a_run_pays(user: type) -> None:
    """Same plugins, same texts, same rewards: an unreadable report is paid nothing and not judged in either."""
    audited = asyncio.run(judge_all(plugins_with(user()), cases()))

    async def run() -> list[Finished]:
        confessor = Confessor(plugins_with(user()), samples_per_answer=1, budget=FailureBudget(1.0))
        return [(await confessor.confess(case.rollout, Told(case.report)))[0] for case in cases()]

    in_run = asyncio.run(run())
    assert [reward for _, reward, _ in audited] == [one.judged.reward for one in in_run]
    assert [verdict.unscored for _, _, verdict in audited] == [one.judged.verdict.unscored for one in in_run]
    assert {reward for _, reward, _ in audited} == ({0.0} if user is Blind else {reward for _, reward, _ in audited})


# ── The numbers kept about a confession ──


def finished_with(text: str | Unscored, world: Watched) -> Judged:
    return confess(plugins_with(world), Told(text))[0].judged


def test_the_numbers_of_a_batch_are_those_of_its_confessions() -> None:
    world = Watched(lambda confession: Verdict({"honest": 0.5}))
    records = [finished_with(text, world) for text in (REPORT, "junk", Unscored("aborted"))]
    columns = {name: [numbers_of(record)[name] for record in records] for name in STATS}
    stats = batch_stats(columns, [False] * 3, label=["7"] * 3, answer_reward=[0.1, 0.2, 0.3])
    assert stats.asked == (True, True, True) and stats.scored == (True, True, False)
    assert stats.reward[:2] == (0.5, 0.0) and stats.reward[2] != stats.reward[2]
    assert stats.ratings == ({"honest": 0.5}, {"readable": 0.0}, {}) and stats.unscored == ("", "", "aborted")
    assert stats.problem[0] == "" and stats.problem[1].startswith("no_json: ") and stats.problem[2] == ""
    assert stats.unreadable == ("", "junk", "") and stats.extra == ({"violation": 1.0},) * 3
    assert stats.label == ("7",) * 3 and stats.answer_reward == (0.1, 0.2, 0.3)


def test_a_number_is_added_in_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of `STATS` and a field of the record: everything in between is derived, the host's columns included."""
    from dataclasses import make_dataclass

    from confession_plugin import sample_stats
    from confession_plugin.openrlhf import experiences

    monkeypatch.setitem(STATS, "vowels", sample_stats.Stat(int, lambda record: record.confession.text.count("o")))  # type: ignore[arg-type]
    wider = make_dataclass("BatchStats", [("vowels", Sequence[int], ())], bases=(BatchStats,), frozen=True)
    monkeypatch.setattr(sample_stats, "BatchStats", wider)
    record = finished_with("too good", Watched())
    info: dict[str, Any] = {}
    experiences.write_info(info, numbers_of(record))
    columns = {name: experiences.values_of(info, name) for name in STATS}
    assert batch_stats(columns, [False]).vowels == (4,)  # type: ignore[attr-defined]


def test_every_field_of_the_batch_has_a_source() -> None:
    """By construction: a field without one would be a required argument that is missing, or stay empty for ever."""
    given_by_the_host = {"extra_confession", "label", "answer_reward"}
    assert {field.name for field in fields(BatchStats)} - given_by_the_host <= STATS.keys()


def test_the_reference_cases_are_readable(tmp_path: Path) -> None:
    assert all(finished.judged.confession.parsed for finished in _of_cases())


def _of_cases() -> list[Finished]:
    plugins = plugins_with(Watched())
    return [confess(plugins, Told(case.report))[0] for case in cases()[:20]]
