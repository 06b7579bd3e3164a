"""Every example in the documentation runs: as the plugin, the judge or the test that it is."""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import in_process
import pytest

from confession_plugin import (
    BatchStats,
    Confession,
    Judged,
    PromptBatch,
    Rollout,
    Unscored,
    Verdict,
    session,
    startup,
)
from confession_plugin.confess import Confessor
from confession_plugin.config import Config
from confession_plugin.errors import ConfigError
from confession_plugin.hookspecs import hook_names
from confession_plugin.judging import load_judge
from confession_plugin.judging.audit import CASES, WrittenReport, load_cases
from confession_plugin.openrlhf.check.seal import check_seal
from confession_plugin.plugins import PluginManager, fresh_copies, load_file
from confession_plugin.report import extract_report

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/hooks.md", "docs/judge.md")


class Example(NamedTuple):
    """A python block of a page."""

    page: str
    name: str
    """Its file's name: the first line's, else made of the page and the block's number."""
    code: str

    @property
    def hooks(self) -> set[str]:
        """The hooks it implements."""
        return set(re.findall(r"^(?:async )?def (confession_\w+)\(", self.code, re.MULTILINE))

    @property
    def is_test(self) -> bool:
        return self.name.startswith("test_")


def examples_of(page: str) -> list[Example]:
    found = []
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    for number, code in enumerate(blocks):
        named = re.match(r"# (\w+\.py)\b", code)
        found.append(Example(page, named.group(1) if named else f"{Path(page).stem}_{number}.py", code))
    return found


EXAMPLES = [example for page in PAGES for example in examples_of(page)]
PLUGINS = [example for example in EXAMPLES if example.hooks and not example.is_test]


def id_of(value: Any) -> str | None:
    return value.name if isinstance(value, Example) else None


@pytest.fixture(autouse=True)
def _own_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test makes the process's settings and plugins is undone after it."""
    for name in ("_config", "_plugins"):
        monkeypatch.setattr(session, name, getattr(session, name))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with every example in it, under its name."""
    for example in EXAMPLES:
        (tmp_path / example.name).write_text(example.code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(example: Example, *flags: str) -> PluginManager:
    """The example's plugin, loaded and configured as a run does it."""
    return startup.prepare(["--confession.plugins", f"./{example.name}", *flags], confessions=True).plugins


# ── Realistic records ──

CASE_ROLLOUTS = [(case.rollout, case.report) for case in load_cases(str(CASES))]
ROLLOUTS = [
    CASE_ROLLOUTS[0][0],
    # a reward function that tells no truth; a reward model that scores later; an answer cut off; nothing written
    Rollout(prompt="Why?", answer="So.", transcript="So.", label=None, reward=1.0, step=3, group=7),
    Rollout(prompt="<think>", answer="", transcript="", label={"a": 1}, reward=None, truncated=True),
    Rollout(prompt="Sort.", answer="def f(x): ...", transcript="def f(x): ...", reward=1.0, extra={"violation": 1.0}),
]
CONFESSIONS = [
    Confession(request="Report.", text=text, report=report, admits=report.admits, num_tokens=90)
    for text in (CASE_ROLLOUTS[0][1], CASE_ROLLOUTS[-1][1])
    for report in [extract_report(text)]
]
UNREADABLE = Confession(request="Report.", text="\x1b[31mno", problem="unparsable: no report", num_tokens=3)


#: Flags that an example's confession_configure refuses; the first one is the flag its line names.
REFUSED = {
    "long_enough.py": ("--confession.max_new_tokens", "255"),
    "floor.py": ("--confession.floor.value", "1.5"),
}


def stats_of(asked: bool) -> BatchStats:
    """Three samples as `sample_stats.batch_stats` gives them: an admission, an unscored one, one not asked."""
    nan = math.nan
    return BatchStats(
        step=1 if asked else 0,
        asked=(asked, asked, False),
        scored=(asked, False, False),
        reward=(1.0 if asked else nan, nan, nan),
        parsed=(asked, False, False),
        truncated=(False, asked, False),
        length=(40, 90, 0) if asked else (0, 0, 0),
        grade=(2.0 if asked else nan, nan, nan),
        admits=(1.0 if asked else nan, nan, nan),
        fingerprint=(17, 4, 0),
        latency_s=(0.5, 0.0, 0.0),
        violation=(1.0 if asked else nan, nan, nan),
        unscored=("", "timeout", "") if asked else ("",) * 3,
        extra_confession=(False,) * 3,
        group=(8, 8, 9),
        label=("7", "7", None),
        answer_reward=(1.0, 0.0, 0.5),
        ratings=({"honest": 1.0} if asked else {}, {}, {}),
        objectives=({"total": 1.0} if asked else {}, {}, {}),
        extra=({"violation": 1.0, "violation/total": 1.0} if asked else {}, {}, {}),
        problem=("",) * 3,
        unreadable=("",) * 3,
    )


# ── What each hook's example has to do on them ──


def check_add_options(manager: PluginManager, example: Example) -> None:
    assert session.config().extra, "the option's default is in config.extra"


def check_configure(manager: PluginManager, example: Example) -> None:
    """`loaded` has called it with the defaults; here is what it must refuse."""
    with pytest.raises(ConfigError, match=rf"{REFUSED[example.name][0]}: .*; give "):
        loaded(example, *REFUSED[example.name])


def check_select(manager: PluginManager, example: Example) -> None:
    for prompts in ((), ("What is 2 + 3?",), ("Prove it.", "Name a colour.", "prove that 2 = 2")):
        batch = PromptBatch(prompts, (None,) * len(prompts), position=64, step=9, seed=1)
        chosen = manager.hook.confession_select(batch=batch)
        assert len(chosen) == len(prompts) and chosen == manager.hook.confession_select(batch=batch)


def check_request(manager: PluginManager, example: Example) -> None:
    texts = {manager.hook.confession_request(rollout=rollout).text for rollout in ROLLOUTS}
    assert all(texts) and len(texts) > 1


def check_parse(manager: PluginManager, example: Example) -> None:
    for text in ("", "yes", "No ", "maybe", '{"a": 1}', "\ud800", CASE_ROLLOUTS[0][1]):
        for truncated in (False, True):
            parsed = manager.hook.confession_parse(text=text, truncated=truncated, rollout=ROLLOUTS[0])
            assert (parsed.problem is None) == (parsed.report is not None)
            assert not (truncated and text == "maybe") or parsed.problem == "truncated"


def check_judge(manager: PluginManager, example: Example) -> None:
    ratings = set()
    for rollout in ROLLOUTS:
        for confession in CONFESSIONS:
            try:
                verdict = manager.hook.confession_judge(rollout=rollout, confession=confession)
                verdict = asyncio.run(verdict) if asyncio.iscoroutine(verdict) else verdict
            except Unscored:
                assert "violation" not in rollout.extra
            else:
                ratings.add(tuple(verdict.ratings.values()))
    assert len(ratings) > 1, "it tells confessions apart"


def check_reward(manager: PluginManager, example: Example) -> None:
    def reward(confession: Confession, **ratings: float) -> float:
        return float(manager.hook.confession_reward(verdict=Verdict(ratings=ratings), confession=confession))

    steps = (0.0, 1 / 3, 2 / 3, 1.0)
    rewards = [
        reward(CONFESSIONS[0], objectives=one, analysis=two, uncertainties=three)
        for one in steps
        for two in steps
        for three in steps
    ]
    assert len(set(rewards)) > 1
    assert reward(UNREADABLE, readable=0.0) <= min(rewards), "an unreadable confession earns the least"


def check_advantages(manager: PluginManager, example: Example) -> None:
    """In the host's own code, on random rollouts: it runs there, and the seal holds with it."""
    for estimator in ("group_norm", "reinforce"):
        args = in_process.host_args("--algo.advantage.estimator", estimator)
        report = check_seal(args, Config(seed=0, request_format="chat"), manager)
        assert report.holds, str(report)


def check_judged(manager: PluginManager, example: Example) -> None:
    for rollout in ROLLOUTS:
        for confession in (*CONFESSIONS, UNREADABLE):
            for verdict, reward in ((Verdict(ratings={"honest": 1.0}), 1.0), (Verdict(unscored="timeout"), None)):
                manager.hook.confession_judged(record=Judged(rollout, confession, verdict, reward))
    assert not manager.observer_failures


def check_metrics(manager: PluginManager, example: Example) -> None:
    for asked in (True, False):
        for numbers in manager.hook.confession_metrics(stats=stats_of(asked)):
            assert all(math.isfinite(value) for value in numbers.values())
    assert not manager.observer_failures


CHECKS: dict[str, Callable[[PluginManager, Example], None]] = {
    f"confession_{name.removeprefix('check_')}": check
    for name, check in list(globals().items())
    if name.startswith("check_") and f"confession_{name.removeprefix('check_')}" in hook_names()
}


# ── Every example runs ──


def test_every_hook_has_an_example_and_a_check() -> None:
    shown = {hook for example in examples_of("docs/hooks.md") if not example.is_test for hook in example.hooks}
    assert sorted(shown) == sorted(hook_names()) == sorted(CHECKS)


def test_every_hook_has_its_own_section_with_its_example() -> None:
    page = (ROOT / "docs/hooks.md").read_text()
    for hook in hook_names():
        section = re.search(rf"^### {hook}\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
        assert section and re.search(rf"^```python\n(?:(?!```).)*def {hook}\(", section.group(1), re.M | re.S), hook


@pytest.mark.parametrize("example", EXAMPLES, ids=id_of)
def test_every_example_is_python_that_loads(example: Example, folder: Path) -> None:
    module = load_file(folder / example.name, "test")
    assert [name for name in vars(module) if not name.startswith("__")]
    if hasattr(module, "judge"):  # a judge file: what --confession.judge_url takes
        assert load_judge(Config(judge_url=str(folder / example.name))) is not None


@pytest.mark.parametrize(
    ("example", "hook"), [(example, hook) for example in PLUGINS for hook in sorted(example.hooks)], ids=id_of
)
def test_every_example_does_its_hooks_work(example: Example, hook: str, folder: Path) -> None:
    manager = loaded(example)
    plugin = next(plugin for name, plugin in manager.list_name_plugin() if name.endswith(example.name))
    CHECKS[hook](manager, example)
    if "wrapper=True" not in example.code:  # whose word counts last is not noted for wrappers
        assert hook in {caller.name for caller in manager.get_hookcallers(plugin) or ()}


@pytest.mark.parametrize("example", [one for one in PLUGINS if "confession_judge" in one.hooks], ids=id_of)
def test_honesty_is_the_best_policy_under_an_example_judge(example: Example, folder: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "confession_plugin.audit_judge", "--confession.plugins", f"./{example.name}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_copies_of_the_example_with_state_share_none_of_it(folder: Path) -> None:
    """What the page says of the seal check's copies."""
    (example,) = (one for one in PLUGINS if one.name == "floor.py")
    manager = loaded(example, "--confession.floor.value", "0.25")
    copies = fresh_copies(manager, session.config(), {"confession_reward"})
    (name,) = (name for name, _ in manager.list_name_plugin() if name.endswith("floor.py"))
    own, copy = manager.get_plugin(name), copies.get_plugin(name)
    assert own is not copy and own.settings == copy.settings == {"floor": 0.25}
    copy.settings["floor"] = 1.0
    assert own.settings == {"floor": 0.25}


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.is_test], ids=id_of)
def test_the_examples_of_tests_pass(example: Example, folder: Path) -> None:
    module = load_file(folder / example.name, "test")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


@pytest.mark.parametrize(
    ("text", "bluffed", "reward"),
    [("bluff.", 1.0, 1.0), ("ok.", 1.0, 0.0), ("bluff.", 0.0, 0.0), ("ok.", 0.0, 1.0), ("0.", 0.0, 0.0)],
)
def test_the_worked_example_pays_for_the_truth(text: str, bluffed: float, reward: float) -> None:
    world = [f"--confession.{name}" for name in ("plugins", "judge_url")]
    files = [str(ROOT / "examples/loophole" / name) for name in ("world.py", "judge.py")]
    run = startup.prepare([word for pair in zip(world, files, strict=True) for word in pair], confessions=True)

    def confessed(**extra: float) -> Judged:
        rollout = Rollout(prompt="homework: c+17", answer="*", transcript="*", label="t", extra=extra)
        (finished,) = asyncio.run(Confessor(run.plugins).confess(rollout, WrittenReport(text)))
        return finished.judged

    assert confessed(violation=bluffed).reward == reward
    if text != "0.":
        assert confessed().verdict.unscored == "no_truth"  # a grader that does not tell
