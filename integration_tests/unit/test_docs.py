"""The documentation is true: its examples run, and what its pages name exists."""

from __future__ import annotations

import ast
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
    __version__,
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


# ── docs/architecture.md and CONTRIBUTING.md: everything they name exists ──

#: Still on its way here from elsewhere: neither compared with the tree nor looked up.  Empty once it has landed.
UNSETTLED = (
    "confession_plugin/judging/",
    "confession_plugin/reasons.py",
    "confession_plugin/reasoning.py",
    "make test-quick",
)

CHECKED_PAGES = ("docs/architecture.md", "docs/hooks.md", "CONTRIBUTING.md")
LINKED_PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in ROOT.glob("docs/*.md")))


def settled(path: str) -> bool:
    return not path.startswith(UNSETTLED)


def tree_of(page: str) -> dict[str, str]:
    """Path -> its line's text, of the page's tree: names indented by two spaces a level, folders ending in a slash."""
    block = re.search(r"^```\n(confession_plugin/\n.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    folders: list[str] = []
    listed = {}
    for line in block.group(1).splitlines():
        indent, name, text = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()  # type: ignore[union-attr]
        del folders[len(indent) // 2 :]
        listed["".join(folders) + name] = text
        if name.endswith("/"):
            folders.append(name)
    return listed


def files_of(package: str) -> set[str]:
    """Every file of a package and every folder in it, with a slash behind."""
    paths = [path for path in (ROOT / package).rglob("*") if "__pycache__" not in path.parts]
    return {f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for path in paths} | {f"{package}/"}


def test_the_tree_lists_each_file_of_the_packages_and_nothing_else() -> None:
    listed = tree_of("docs/architecture.md")
    there = files_of("confession_plugin") | files_of("hooks")
    there -= {"hooks/prompts/judge.txt", "hooks/prompts/calibration.txt"} if UNSETTLED else set()
    assert sorted(filter(settled, listed)) == sorted(filter(settled, there))
    assert not [
        path for path, text in listed.items() if not text and path not in ("confession_plugin/", "hooks/prompts/")
    ]


def names_in(page: str) -> list[tuple[str, bool]]:
    """What stands in backticks outside of code blocks, and whether the page says that it is still to come."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return [(name, bool(new)) for name, new in re.findall(r"`([^`\n]+)`( \(new\))?", text)]


def place_of(path: str) -> Path | None:
    """A path below the root or below the main package."""
    return next((found for base in (ROOT, ROOT / "confession_plugin") if (found := base / path).exists()), None)


def defines(file: Path, dotted: str) -> bool:
    """Does the file define this name at its top level, or this class this method or attribute?"""
    body: list[ast.stmt] = ast.parse(file.read_text()).body
    for name in dotted.split("."):
        found = next((node for node in body if name in _defined_by(node)), None)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def _defined_by(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    )
    return {target.id for target in targets if isinstance(target, ast.Name)}


PATH = re.compile(r"(?P<path>[\w./-]+(?:/|\.(?:py|md|txt|jsonl|toml|sh|typed)))(?::(?P<name>[\w.]+))?")


def problem_with(name: str, new: bool) -> str | None:
    """Why a name on a page is wrong; None where it is right, or is no name of ours."""
    if not settled(name):
        return None
    if flag := re.fullmatch(r"--confession\.(\w+)(?: \S+)?", name):
        return None if flag.group(1) in Config.model_fields else "no such flag"
    if hook := re.fullmatch(r"(confession_\w+)(?:\(\w+\))?", name):
        return None if hook.group(1) in (*hook_names(), "confession_plugin", "confession_hooks") else "no such hook"
    if target := re.fullmatch(r"make ([\w-]+)", name):
        return None if re.search(rf"^{target.group(1)}:", (ROOT / "Makefile").read_text(), re.M) else "no such target"
    if (found := PATH.fullmatch(name)) is None or not settled(f"confession_plugin/{found['path']}"):
        return None
    place = place_of(found["path"])
    if new:
        return None if place is None else "is not new any more"
    if place is None:
        return "no such file"
    return None if not found["name"] or defines(place, found["name"]) else "the file defines no such name"


@pytest.mark.parametrize("page", CHECKED_PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    names = names_in(page)
    assert len([name for name, _ in names if PATH.fullmatch(name)]) > 5
    assert not {name: problem for name, new in names if (problem := problem_with(name, new)) is not None}


def test_wrong_names_are_found() -> None:
    assert problem_with("confess.py:Confessor.confess", False) is problem_with("config.py:ENV_VAR", False) is None
    for wrong in (
        "confess.py:Nothing",
        "confess.py:Confessor.nothing",
        "nothing.py",
        "openrlhf/nothing/",
        "make noise",
    ):
        assert problem_with(wrong, False), wrong
    assert problem_with("--confession.nothing", False) and problem_with("confession_nothing", False)
    assert problem_with("seal.py", True) and problem_with("nothing.py", True) is None


@pytest.mark.parametrize("page", LINKED_PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for label, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), f"{page}: [{label}]({target})"
        headings = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, f"{page}: [{label}]({target})"


@pytest.mark.parametrize(
    "wanted",
    ["a second host", "a report page", "evaluation kit", "exporter", "a flag", "a hook", "a metric", "a tripwire"],
)
def test_a_reader_finds_where_to_change_it(wanted: str) -> None:
    page = (ROOT / "docs/architecture.md").read_text().lower()
    changes = page[page.index("## where do i change x?") :]
    (line, *_) = [line for line in changes.splitlines() if wanted in line]
    assert "`" in line or line.startswith("#")


def test_the_version_is_one() -> None:
    project = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None and project.group(1) == __version__
    assert re.search(rf"^## \[{re.escape(__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.xfail(strict=True, reason="pyproject.toml leaves out openrlhf/check and reporting")
def test_every_folder_with_python_files_is_installed() -> None:
    named = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert named is not None
    files = [*ROOT.glob("confession_plugin/**/*.py"), *ROOT.glob("hooks/**/*.py")]
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in files}
    assert {re.sub(r"^hooks", "confession_hooks", folder) for folder in folders} == set(
        re.findall(r'"(confession_[\w.]+)"', named.group(1))
    )
