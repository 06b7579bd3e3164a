"""The judge as a Python function: what it may return, what it may not, and what its waiting costs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from confession_plugin import Confession, Rollout, Verdict
from confession_plugin.config import Config
from confession_plugin.errors import ConfessionError, ConfigError, JudgeError, PluginError
from confession_plugin.judging import function, probe
from confession_plugin.judging.failure_budget import FailureBudget
from confession_plugin.plugins import PluginManager, configured, load_file, load_plugins

ROLLOUT = Rollout(prompt="2 + 2?", answer="4", transcript="4", label="4")
CONFESSION = Confession(request="", text="{}")


def plugins_with(tmp_path: Path, code: str, **settings: Any) -> PluginManager:
    file = tmp_path / "my_judge.py"
    file.write_text("import asyncio, time\nfrom confession_plugin import Unscored, Verdict\n" + code)
    return configured(Config(judge_url=str(file), **settings))


def judged(plugins: PluginManager) -> Verdict:
    verdict = asyncio.run(plugins.hook.confession_judge(rollout=ROLLOUT, confession=CONFESSION))
    assert isinstance(verdict, Verdict)
    return verdict


def reward(plugins: PluginManager, verdict: Verdict) -> float:
    return plugins.hook.confession_reward(verdict=verdict, confession=CONFESSION)


@pytest.mark.parametrize("keyword", ["def", "async def"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.25", 0.25),
        ("1", 1.0),
        ("True", 1.0),
        ("rollout.answer == rollout.label", 1.0),
        ("__import__('torch').tensor(0.5)", 0.5),
        ("{'a': 1.0, 'b': 0, 'c': 0.5}", 0.5),
        ("Verdict(ratings={'x': 0.75}, detail='why')", 0.75),
    ],
)
def test_what_a_judge_may_return(tmp_path: Path, keyword: str, value: str, expected: float) -> None:
    plugins = plugins_with(tmp_path, f"{keyword} judge(rollout, confession):\n    return {value}\n")
    verdict = judged(plugins)
    assert verdict.scored and reward(plugins, verdict) == pytest.approx(expected)
    assert 0 < verdict.latency_s < 60


def test_the_reward_is_the_plain_mean_of_named_ratings_and_weighted_for_the_rubrics_three(tmp_path: Path) -> None:
    plugins = plugins_with(tmp_path, "def judge(rollout, confession): return 1", judge_weights=(1, 2, 1))
    assert reward(plugins, Verdict({"a": 1.0, "b": 0.0})) == 0.5
    assert reward(plugins, Verdict({"objectives": 0.0, "analysis": 1.0, "uncertainties": 0.0})) == 0.5
    assert reward(plugins, Verdict({"objectives": 1.0, "analysis": 0.0, "uncertainties": 1.0})) == 0.5
    assert reward(plugins, Verdict({"objectives": 1.0, "analysis": 0.0, "other": 0.0})) == pytest.approx(1 / 3)


@pytest.mark.parametrize("keyword", ["def", "async def"])
@pytest.mark.parametrize(
    ("statement", "reason", "detail"),
    [
        ("return None", "no_verdict", "returned None"),
        ("raise Unscored('too_hard', 'no idea')", "too_hard", "no idea"),
        ("return Verdict(unscored='busy')", "busy", ""),
        ("raise TimeoutError()", "timeout", "within"),
    ],
)
def test_no_verdict_is_not_a_number(tmp_path: Path, keyword: str, statement: str, reason: str, detail: str) -> None:
    verdict = judged(plugins_with(tmp_path, f"{keyword} judge(rollout, confession):\n    {statement}\n"))
    assert (verdict.scored, verdict.unscored) == (False, reason)
    assert detail in verdict.detail and not verdict.ratings


@pytest.mark.parametrize("keyword", ["def", "async def"])
@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("return 1.5", "returned 1.5: rating honesty=1.5 is not in [0, 1]"),
        ("return float('nan')", "not in [0, 1]"),
        ("return '1'", "text is no rating"),
        ("return {}", "a verdict needs ratings"),
        ("return {'a': None}", "return a Verdict, a number in [0, 1], a mapping of such ratings, or None"),
        ("return [1, 2]", "returned [1, 2]"),
        ("return 1 / 0", "plugin 'judge' failed in confession_judge: ZeroDivisionError"),
    ],
)
def test_a_wrong_judge_stops_the_run_in_one_line(tmp_path: Path, keyword: str, statement: str, message: str) -> None:
    plugins = plugins_with(tmp_path, f"{keyword} judge(rollout, confession):\n    {statement}\n")
    with pytest.raises(PluginError) as caught:
        judged(plugins)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def other(): pass", "has no function `judge`; define judge(rollout, confession)"),
        ("judge = 3", "has no function `judge`"),
        ("def judge(rollout): pass", "judge(rollout) cannot be called as judge(rollout, confession): too many"),
        ("def judge(rollout, confession, key): pass", "missing a required argument: 'key'"),
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError"),
        ("def judge(:", "cannot be imported: SyntaxError"),
    ],
)
def test_a_judge_that_cannot_work_is_refused_at_the_start(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(ConfessionError) as caught:
        plugins_with(tmp_path, code)
    text = str(caught.value)
    assert message in text and "--confession.judge_url" in text and "my_judge.py" in text and "\n" not in text


def test_the_probe_checks_a_function_judge_too(tmp_path: Path) -> None:
    file = tmp_path / "empty.py"
    file.write_text("")
    with pytest.raises(ConfigError, match="has no function"):
        probe(Config(judge_url=str(file)))
    probe(Config())


def test_without_a_judge_url_another_plugin_judges() -> None:
    plugins = load_plugins(Config())
    plugins.hook.confession_configure(config=Config())
    assert plugins.hook.confession_judge(rollout=ROLLOUT, confession=CONFESSION) is None


def test_a_sync_judge_holds_up_neither_the_loop_nor_other_calls(tmp_path: Path) -> None:
    """All 32 calls meet in their threads, and then wait for something that only the event loop does."""
    code = (
        "import threading\nmet, released = threading.Barrier(32), threading.Event()\n\n"
        "def judge(rollout, confession):\n    met.wait(60)\n    return released.wait(60)\n"
    )
    plugins = plugins_with(tmp_path, code)

    async def main() -> list[Verdict]:
        calls = [
            asyncio.ensure_future(plugins.hook.confession_judge(rollout=ROLLOUT, confession=CONFESSION))
            for _ in range(32)
        ]
        judge = load_file(tmp_path / "my_judge.py", "flag")
        while judge.met.n_waiting or not any(thread.name == "confession-judge" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
        judge.released.set()
        return await asyncio.gather(*calls)

    assert [verdict.ratings for verdict in asyncio.run(main())] == [{"honesty": 1.0}] * 32


@pytest.mark.parametrize(
    "code", ["async def judge(r, c):\n    await asyncio.sleep(%s)", "def judge(r, c):\n    time.sleep(%s)"]
)
def test_a_slow_call_is_unscored_and_costs_no_other(tmp_path: Path, code: str) -> None:
    code = code % "1.5 if r.answer == 'slow' else 0" + "\n    return 1\n"
    plugins = plugins_with(tmp_path, code, judge_timeout=0.3)
    rollouts = [Rollout("p", "slow" if index == 3 else "quick", "", "") for index in range(8)]

    async def main() -> list[Verdict]:
        return await asyncio.gather(
            *(plugins.hook.confession_judge(rollout=rollout, confession=CONFESSION) for rollout in rollouts)
        )

    verdicts = asyncio.run(main())
    assert [verdict.unscored for verdict in verdicts] == [None] * 3 + ["timeout"] + [None] * 4
    assert "--confession.judge_timeout" in verdicts[3].detail


def test_waiting_for_a_thread_is_not_the_judges_time(tmp_path: Path) -> None:
    code = "def judge(rollout, confession):\n    time.sleep(0.2)\n    return 1\n"
    plugins = plugins_with(tmp_path, code, judge_timeout=0.7, judge_concurrency=1)

    async def main() -> list[Verdict]:
        calls = (plugins.hook.confession_judge(rollout=ROLLOUT, confession=CONFESSION) for _ in range(6))
        return await asyncio.gather(*calls)

    assert all(verdict.scored for verdict in asyncio.run(main()))


HANGING = "def judge(rollout, confession):\n    time.sleep(3600 if rollout.answer == 'hang' else 0)\n    return 1\n"


def test_a_sync_judge_that_hangs_costs_no_other_call_its_thread(tmp_path: Path) -> None:
    plugins = plugins_with(tmp_path, HANGING, judge_timeout=1.0, judge_concurrency=2)
    rollouts = [Rollout("p", "hang" if index < 4 else "quick", "") for index in range(12)]

    async def main() -> list[Verdict]:
        return await asyncio.gather(
            *(plugins.hook.confession_judge(rollout=rollout, confession=CONFESSION) for rollout in rollouts)
        )

    assert [verdict.unscored for verdict in asyncio.run(main())] == ["timeout"] * 4 + [None] * 8


def test_a_command_whose_judge_hangs_ends(tmp_path: Path) -> None:
    """A process that asked a hanging judge comes to its end, though the thread never does."""
    (tmp_path / "my_judge.py").write_text("import time\n" + HANGING)
    script = (
        "import asyncio\nfrom confession_plugin import Confession, Rollout\n"
        "from confession_plugin.config import Config\nfrom confession_plugin.judging import load_judge\n"
        "judge = load_judge(Config(judge_url='my_judge.py', judge_timeout=0.2))\n"
        "print(asyncio.run(judge(Rollout('', 'hang', ''), Confession('', ''))).unscored)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "timeout"), done.stderr


def test_an_async_judge_that_refuses_to_be_cancelled_is_given_up(tmp_path: Path) -> None:
    code = (
        "async def judge(rollout, confession):\n    while rollout.answer == 'hang' and not stop:\n        try:\n"
        "            await asyncio.sleep(0.1)\n        except asyncio.CancelledError:\n            pass\n"
        "    return 1\n\nstop = []\n"
    )
    plugins = plugins_with(tmp_path, code, judge_timeout=0.3)

    async def main() -> Verdict:
        found = await plugins.hook.confession_judge(rollout=Rollout("", "hang", ""), confession=CONFESSION)
        load_file(tmp_path / "my_judge.py", "flag").stop.append(True)
        return found

    assert asyncio.run(main()).unscored == "timeout"


def test_a_sync_judge_that_goes_on_hanging_stops_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function, "_MOST_HUNG", 3)
    plugins = plugins_with(tmp_path, HANGING, judge_timeout=0.1)

    async def main() -> None:
        for _ in range(3):
            await plugins.hook.confession_judge(rollout=Rollout("", "hang", ""), confession=CONFESSION)

    with pytest.raises(PluginError, match=r"3 calls of judge in .* took longer than 0\.1 s"):
        asyncio.run(main())


# ── how many missing scores a run accepts ──

SCORED, MISSING = Verdict({"x": 1.0}), Verdict(unscored="http_5xx", detail="HTTP 503:\nout for lunch")


def test_the_budget_stops_a_run_above_its_share_and_names_the_last_failure() -> None:
    budget = FailureBudget(0.5)
    for _ in range(32):
        budget.add(MISSING)
        budget.add(SCORED)
    with pytest.raises(JudgeError) as caught:
        for _ in range(2):
            budget.add(MISSING)  # the first pushes out an old failure, the second an old success
    text = str(caught.value)
    assert text.startswith("33 of the last 64 confessions could not be scored (http_5xx 33)")
    assert "HTTP 503: out for lunch" in text and "--confession.max_unscored (now 0.5)" in text and "\n" not in text


def test_the_budget_forgets() -> None:
    budget = FailureBudget(0.5)
    for _ in range(20):
        for _ in range(32):
            budget.add(MISSING)
        for _ in range(64):
            budget.add(SCORED)


def test_a_judge_that_is_down_from_the_start_is_found_out_after_half_the_budgets_size() -> None:
    budget = FailureBudget(0.5)
    for _ in range(32):
        budget.add(MISSING)
    with pytest.raises(JudgeError, match="33 of the last 33"):
        budget.add(MISSING)


@pytest.mark.parametrize(("limit", "allowed"), [(0.0, 0), (0.25, 16), (1.0, 1000)])
def test_the_budgets_limits(limit: float, allowed: int) -> None:
    budget = FailureBudget(limit)
    for _ in range(allowed):
        budget.add(MISSING)
    if limit < 1:
        with pytest.raises(JudgeError):
            budget.add(MISSING)
