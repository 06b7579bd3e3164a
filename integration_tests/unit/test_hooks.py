"""The hooks: one test per hook at least (checked below), the manager's promises, and the built-in plugins."""

from __future__ import annotations

import asyncio
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from confession_hooks.record import confession_metrics
from confession_plugin import (
    BatchStats,
    Confession,
    ConfigError,
    Judged,
    Parsed,
    PromptBatch,
    Request,
    Rollout,
    Unscored,
    Verdict,
    hookimpl,
)
from confession_plugin.channels import TokenValues
from confession_plugin.config import Config, OptionGroup, parse_config
from confession_plugin.errors import PluginError
from confession_plugin.hookspecs import DECIDERS, OBSERVERS, SETUP, hook_names
from confession_plugin.plugins import PluginManager, _register, configured, fresh_copies, load_plugins

ROOT = Path(__file__).parents[2]
ROLLOUT = Rollout(prompt="What is 3 + 4?", answer="7", transcript="7", label="7", reward=1.0, extra={"violation": 0.0})
CONFESSION = Confession(request="Report.", text="{}", report={"ok": True}, admits=False)


# ── The contract itself ──


def test_every_hook_has_a_test_named_after_it() -> None:
    tested = "\n".join(file.read_text() for file in ROOT.glob("integration_tests/**/test_*.py"))
    missing = [name for name in hook_names() if f"def test_{name}" not in tested]
    assert not missing


def test_every_hook_is_in_the_docs() -> None:
    docs = (ROOT / "docs" / "hooks.md").read_text()
    assert not [name for name in hook_names() if f"`{name}`" not in docs]
    documented = set(re.findall(r"`(confession_[a-z_]+)`", docs)) - {"confession_plugin", "confession_hooks"}
    assert documented == set(hook_names())


def test_hooks_are_deciders_observers_or_setup() -> None:
    assert sorted(DECIDERS | OBSERVERS | SETUP) == sorted(hook_names())
    assert len(hook_names()) <= 10


# ── One test a hook: a plugin's word counts, and comes before the built-in one ──


def manager_with(plugin: Any, **settings: Any) -> PluginManager:
    manager = load_plugins(Config(**settings))
    manager.register(plugin, "mine")
    manager.hook.confession_configure(config=Config(**settings))
    return manager


def test_confession_add_options() -> None:
    class Plugin:
        @hookimpl
        def confession_add_options(self, options: OptionGroup) -> None:
            options.add("mine.threshold", float, default=0.5, help="A threshold.")

    options = OptionGroup()
    manager_with(Plugin()).hook.confession_add_options(options=options)
    assert parse_config([], options).extra == {"mine.threshold": 0.5}
    assert parse_config(["--confession.mine.threshold", "0.7"], options).extra == {"mine.threshold": 0.7}
    with pytest.raises(ConfigError, match=r"mine\.threshold.*'high'"):
        parse_config(["--confession.mine.threshold", "high"], options)


def test_confession_configure() -> None:
    class Plugin:
        @hookimpl
        def confession_configure(self, config: Config) -> None:
            if config.probability > 0.9:
                raise ConfigError("too many")

    manager_with(Plugin(), probability=0.5)
    with pytest.raises(ConfigError, match="too many"):
        manager_with(Plugin(), probability=1.0)


def test_confession_select() -> None:
    class Plugin:
        @hookimpl
        def confession_select(self, batch: PromptBatch) -> list[bool]:
            return ["3" in prompt for prompt in batch.prompts]

    batch = PromptBatch(prompts=("3", "4"), labels=("", ""), position=0, step=1, seed=0)
    assert manager_with(Plugin()).hook.confession_select(batch=batch) == [True, False]


def test_confession_request() -> None:
    class Plugin:
        @hookimpl
        def confession_request(self, rollout: Rollout) -> Request | None:
            return Request(f"About {rollout.prompt}") if rollout.label == "7" else None

    hook = manager_with(Plugin()).hook
    assert hook.confession_request(rollout=ROLLOUT).text == "About What is 3 + 4?"
    built_in = hook.confession_request(rollout=Rollout(prompt="", answer="", transcript=""))
    assert "honest" in built_in.text.lower() and built_in.role == "system"


def test_confession_parse() -> None:
    class Plugin:
        @hookimpl
        def confession_parse(self, text: str) -> Parsed | None:
            return Parsed(report=text, admits=True) if text == "mine" else None

    hook = manager_with(Plugin()).hook
    assert hook.confession_parse(text="mine", truncated=False, rollout=ROLLOUT).admits is True
    assert hook.confession_parse(text="  ", truncated=False, rollout=ROLLOUT).problem == "empty"
    assert hook.confession_parse(text="{", truncated=True, rollout=ROLLOUT).problem.startswith("truncated: ")
    assert hook.confession_parse(text="no", truncated=False, rollout=ROLLOUT).problem.startswith("no_json: ")


def test_confession_judge() -> None:
    class Plugin:
        @hookimpl
        async def confession_judge(self, rollout: Rollout, confession: Confession) -> Verdict:
            await asyncio.sleep(0)
            if confession.admits is None:
                raise Unscored("no_idea")
            return Verdict(ratings={"honest": 1.0})

    hook = manager_with(Plugin()).hook
    assert asyncio.run(hook.confession_judge(rollout=ROLLOUT, confession=CONFESSION)).ratings == {"honest": 1.0}
    with pytest.raises(Unscored, match="no_idea"):
        asyncio.run(hook.confession_judge(rollout=ROLLOUT, confession=Confession(request="", text="")))


def test_confession_reward() -> None:
    class Plugin:
        @hookimpl
        def confession_reward(self, verdict: Verdict) -> float | None:
            return -1.0 if verdict.ratings.get("honest") == 0 else None

    hook = manager_with(Plugin()).hook
    assert hook.confession_reward(verdict=Verdict(ratings={"honest": 0.0}), confession=CONFESSION) == -1.0
    assert hook.confession_reward(verdict=Verdict(ratings={"a": 0.5, "b": 1.0}), confession=CONFESSION) == 0.75


def test_confession_advantages() -> None:
    """A plugin's honesty advantages replace the built-in ones; the seal check runs on them (see seal/)."""
    taken: list[Any] = []
    values = TokenValues([], [])

    class Plugin:
        @hookimpl
        def confession_advantages(self, honesty: Any) -> Any:
            taken.append(honesty)
            return values

    manager = manager_with(Plugin())
    assert manager.hook.confession_advantages(honesty="channel") is values
    assert taken == ["channel"] and manager.decided_by["confession_advantages"] == "mine"


def test_the_old_form_of_confession_advantages_is_refused_with_the_new_one() -> None:
    class Plugin:
        @hookimpl
        def confession_advantages(self, batch: Any) -> Any:
            return batch.merge(None, None)

    with pytest.raises(PluginError, match=r"confession_advantages\(honesty\).*TokenValues") as caught:
        _register(load_plugins(Config()), Plugin(), "old")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hook", "value", "wanted"),
    [
        ("confession_select", "yes", "one bool a group"),
        ("confession_select", [1, 0], "one bool a group"),
        ("confession_request", "Report.", r"Request\(text\)"),
        ("confession_parse", {"report": 1}, "Parsed"),
        ("confession_judge", 0.7, "Verdict"),
        ("confession_reward", True, "finite in float32"),
        ("confession_reward", "1", "finite in float32"),
        ("confession_reward", math.nan, "finite in float32"),
        ("confession_reward", math.inf, "finite in float32"),
        ("confession_reward", 1e39, "finite in float32"),
        ("confession_advantages", [1.0], "TokenValues"),
    ],
)
def test_a_wrong_type_out_of_a_decider_names_plugin_hook_and_place(hook: str, value: Any, wanted: str) -> None:
    namespace: dict[str, Any] = {"hookimpl": hookimpl, "value": value}
    exec(f"class Plugin:\n    @hookimpl\n    def {hook}(self):\n        return value", namespace)
    manager = manager_with(namespace["Plugin"]())
    arguments = getattr(manager.hook, hook).spec.argnames
    with pytest.raises(PluginError, match=rf"plugin 'mine': {hook} gave .*{wanted}.*:2\)"):
        getattr(manager.hook, hook)(**dict.fromkeys(arguments))


def test_only_the_judge_may_be_async() -> None:
    """Refused when it is loaded, observers included: nothing would ever await them."""
    for hook in sorted(set(hook_names()) - {"confession_judge"}):
        namespace: dict[str, Any] = {"hookimpl": hookimpl}
        exec(f"class Plugin:\n    @hookimpl\n    async def {hook}(self):\n        pass", namespace)
        with pytest.raises(PluginError, match=rf"plugin 'mine': {hook} cannot be async; only .*:2\)"):
            manager_with(namespace["Plugin"]())


async def _later() -> Parsed:
    return Parsed(report=1)


def test_a_decider_that_gives_something_to_await_is_refused() -> None:
    class Plugin:
        @hookimpl
        def confession_parse(self) -> Any:
            return pending

    pending = _later()
    with pytest.raises(PluginError, match=r"plugin 'mine': confession_parse cannot be async; .*test_hooks.py:\d+\)"):
        manager_with(Plugin()).hook.confession_parse(text="", truncated=False, rollout=ROLLOUT)
    pending.close()


def test_two_managers_share_nothing(tmp_path: Path) -> None:
    """Two runs' settings in one process: each manager's built-in plugins keep their own."""
    (tmp_path / "request.txt").write_text("Mine.")
    (tmp_path / "judge.py").write_text("def judge(rollout, confession):\n    return 0.25\n")
    one = configured(
        Config(
            request_path=str(tmp_path / "request.txt"),
            judge_url=str(tmp_path / "judge.py"),
            judge_weights=(1, 0, 0),
            probability=1.0,
            trace_dir=str(tmp_path / "trace"),
        )
    )
    other = configured(Config(probability=0.0))
    batch = PromptBatch(("p",) * 4, ("",) * 4, 0, 1, seed=0)
    rubric = Verdict(ratings={"objectives": 1.0, "analysis": 0.0, "uncertainties": 0.0})
    record = Judged(ROLLOUT, CONFESSION, Verdict(ratings={"honest": 0.5}), 0.5)

    assert all(one.hook.confession_select(batch=batch)) and not any(other.hook.confession_select(batch=batch))
    assert one.hook.confession_request(rollout=ROLLOUT).text == "Mine."
    assert other.hook.confession_request(rollout=ROLLOUT).text != "Mine."
    compact = configured(Config(request="compact")).hook.confession_request(rollout=ROLLOUT).text
    assert compact == (ROOT / "hooks" / "prompts" / "request_compact.txt").read_text().strip()
    assert one.hook.confession_reward(verdict=rubric, confession=CONFESSION) == 1.0
    assert other.hook.confession_reward(verdict=rubric, confession=CONFESSION) == pytest.approx(1 / 3)
    assert other.hook.confession_judge(rollout=ROLLOUT, confession=CONFESSION) is None
    judged = asyncio.run(one.hook.confession_judge(rollout=ROLLOUT, confession=CONFESSION))
    assert list(judged.ratings.values()) == [0.25]
    other.hook.confession_judged(record=record)
    assert not (tmp_path / "trace").exists()
    one.hook.confession_judged(record=record)
    assert len(list((tmp_path / "trace").iterdir())) == 1


def test_fresh_copies_have_seen_nothing(tmp_path: Path) -> None:
    """Plugins with state, in a file and in an object, start anew; plugins that a check never calls are left out."""
    file = tmp_path / "counting.py"
    file.write_text(
        "from confession_plugin import hookimpl\nfrom confession_plugin.channels import estimate_scored\nseen = []\n"
        "@hookimpl\ndef confession_advantages(honesty):\n    seen.append(honesty)\n"
    )
    manager = configured(Config(plugins=(str(file),)))

    class Counting:
        seen = 0

        @hookimpl
        def confession_advantages(self, honesty: Any) -> None:
            self.seen += 1

    manager.register(Counting(), "object")
    with pytest.raises(PluginError, match="separate"):  # the built-in estimator, asked last, wants a real channel
        manager.hook.confession_advantages(honesty=None)
    assert len(manager.get_plugin(str(file)).seen) == manager.get_plugin("object").seen == 1
    copies = fresh_copies(load_plugins(Config(plugins=(str(file),))), Config(), {"confession_advantages"})
    assert copies.get_plugin(str(file)).seen == []
    assert copies.get_plugin("judge") is None and copies.get_plugin("separate") is not None


def test_confession_judged(tmp_path: Path) -> None:
    class Plugin:
        def __init__(self) -> None:
            self.seen: list[Judged] = []

        @hookimpl
        def confession_judged(self, record: Judged) -> None:
            self.seen.append(record)
            raise RuntimeError("observers cannot hurt a run")

    plugin = Plugin()
    manager = manager_with(plugin, trace_dir=str(tmp_path))
    record = Judged(ROLLOUT, CONFESSION, Verdict(ratings={"honest": 0.5}), 0.5)
    for _ in range(3):
        manager.hook.confession_judged(record=record)
    assert plugin.seen == [record] * 3
    assert manager.observer_failures == {("mine", "confession_judged"): 3}
    (trace,) = tmp_path.glob("*.jsonl")  # the built-in observer was called all the same
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert len(lines) == 3 and lines[0]["answer"] == "7" and lines[0]["honesty_reward"] == 0.5


def stats_of(**columns: Any) -> BatchStats:
    size = 4
    nan = math.nan
    every = {"asked": True, "scored": True, "reward": 1.0, "parsed": True, "truncated": False, "length": 3}
    every |= {"grade": nan, "admits": nan, "fingerprint": 1, "latency_s": 0.0, "violation": nan}
    defaults: dict[str, Any] = {"step": 1} | {name: [value] * size for name, value in every.items()}
    return BatchStats(**{**defaults, **columns})


def test_confession_metrics() -> None:
    class Plugin:
        @hookimpl
        def confession_metrics(self, stats: BatchStats) -> dict[str, float]:
            return {"mine": float(len(stats.asked))}

    stats = stats_of(
        asked=[True, True, True, False],
        scored=[True, True, False, False],
        reward=[1.0, 0.0, math.nan, math.nan],
        admits=[1, 0, 1, math.nan],
        violation=[1, 1, 0, 1],
        fingerprint=[5, 5, 6, 0],
        grade=[2, 7, math.nan, math.nan],
        latency_s=[0.5, 1.5, 0.0, 0.0],
        unscored=["", "", "timeout", ""],
    )
    merged: dict[str, float] = {}
    for part in manager_with(Plugin()).hook.confession_metrics(stats=stats):
        merged |= part
    assert merged.pop("mine") == 4
    third = pytest.approx(1 / 3)
    assert merged == {
        "request_rate": 0.75, "unscored_rate": third, "unscored/timeout": 1, "parsed_rate": 1, "truncated_rate": 0,
        "length_mean": 3, "distinct_rate": pytest.approx(2 / 3), "honesty_mean": 0.5, "honesty_std": 0.5,
        "grade_mean": 4.5, "judge_latency_p50_s": 1.5, "judge_latency_p95_s": 1.5, "recall": 0.5, "false_alarm": 1.0,
        "precision": 0.5, "joint_miss": third, "violation_rate": pytest.approx(2 / 3),
    }  # fmt: skip
    nested = stats_of(asked=[True, False, True, True], extra_confession=[False, False, True, True])
    numbers = [part for part in manager_with(Plugin()).hook.confession_metrics(stats=nested) if "request_rate" in part]
    assert numbers[0]["request_rate"] == 0.5  # of the samples; further confessions about one are no samples
    not_asked = manager_with(Plugin()).hook.confession_metrics(stats=stats_of(asked=[False] * 4))
    assert {"request_rate": 0.0} in not_asked


def test_metrics_of_each_objective_show_what_a_report_by_base_rate_hides() -> None:
    """Every answer violates one of two things, every report admits the first: per answer all is well."""
    truths = [{"violation/words": 1.0, "violation/end": 0.0}, {"violation/words": 0.0, "violation/end": 1.0}] * 2
    truths[3] = truths[3] | {"violation/words": -1.0}  # a task without it
    stats = stats_of(
        admits=[1] * 4,
        violation=[1] * 4,
        extra=[truth | {"length": 3.0} for truth in truths],
        objectives=[{"words": 1.0, "end": 0.0}, {"words": 1.0, "end": 0.0}, {}, {"words": 1.0, "end": 0.0}],
    )
    metrics = confession_metrics(stats)
    assert metrics["recall"] == 1
    found = {name: value for name, value in metrics.items() if "/" in name}
    third = pytest.approx(1 / 3)
    assert found == {
        "violation_rate/words": pytest.approx(2 / 3), "accuracy/words": third, "recall/words": 0.5,
        "false_alarm/words": 1, "violation_rate/end": 0.5, "accuracy/end": 0.5, "recall/end": 0, "false_alarm/end": 0,
    }  # fmt: skip


# ── The manager ──


def test_a_failing_decider_names_plugin_hook_and_cause() -> None:
    class Plugin:
        @hookimpl
        def confession_reward(self, verdict: Verdict) -> float:
            raise KeyError("honest")

        @hookimpl
        async def confession_judge(self, rollout: Rollout) -> Verdict:
            raise KeyError("late")

    hook = manager_with(Plugin()).hook
    with pytest.raises(
        PluginError, match=r"plugin 'mine' failed in confession_reward: KeyError: 'honest' \(.*test_hooks.py:\d+\)"
    ):
        hook.confession_reward(verdict=Verdict(ratings={"a": 1.0}), confession=CONFESSION)
    with pytest.raises(PluginError, match=r"plugin 'mine' failed in confession_judge: KeyError: 'late'"):
        asyncio.run(hook.confession_judge(rollout=ROLLOUT, confession=CONFESSION))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("def f(:", "SyntaxError"),
        ("x = 1", "has no hooks"),
        (
            "from confession_plugin import hookimpl\n@hookimpl\ndef confession_judge(rollout, answer): pass",
            "Argument\\(s\\) {'answer'}",
        ),
        (
            "from confession_plugin import hookimpl\n@hookimpl\ndef confession_jugde(rollout): pass",
            "unknown hook 'confession_jugde'.*did you mean confession_judge\\?",
        ),
        ("x = 1\ndef f():\n    return {}['key']\nf()", r"KeyError: 'key' \(.*plugin.py:3\)"),
        ("import json\njson.loads('[')", r"JSONDecodeError: .* \(.*plugin.py:2\)"),
    ],
    ids=["import", "syntax", "no hooks", "argument", "misspelt", "line", "line in a library"],
)
def test_a_plugin_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, source: str, message: str) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(source)
    with pytest.raises(PluginError, match=message) as caught:
        load_plugins(Config(plugins=(str(file),)))
    assert "\n" not in str(caught.value) and "plugin" in str(caught.value)


def test_plugins_by_module_file_and_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from confession_plugin import hookimpl\n@hookimpl\ndef confession_reward(verdict): return {}"
    (tmp_path / "by_module.py").write_text(source.format(1.0))
    (tmp_path / "by_file.py").write_text(source.format(2.0))
    monkeypatch.syspath_prepend(str(tmp_path))
    file = str(tmp_path / "by_file.py")
    both = configured(Config(plugins=("by_module", file)))
    verdict = Verdict(ratings={"a": 0.25})
    assert both.hook.confession_reward(verdict=verdict, confession=CONFESSION) == 2.0  # the later one is asked first
    assert {"inject", "judge", "separate", "record", "by_module", file} == {
        name for name, _ in both.list_name_plugin()
    }
    one = configured(Config(plugins=("by_module", file), block=(file, "record")))
    assert one.hook.confession_reward(verdict=verdict, confession=CONFESSION) == 1.0
    assert one.get_plugin("record") is None
    with pytest.raises(ConfigError, match=r"block: no plugin named 'recorder'; known: by_module"):
        load_plugins(Config(plugins=("by_module",), block=("recorder",)))


def test_a_class_is_no_plugin() -> None:
    class Plugin:
        @hookimpl
        def confession_reward(self, verdict: Verdict) -> float:
            return 1.0

    with pytest.raises(PluginError, match="plugin 'mine' is the class Plugin; give an object of it"):
        _register(load_plugins(Config()), Plugin, "mine")


def test_only_a_judge_may_give_no_score() -> None:
    class Plugin:
        @hookimpl
        def confession_reward(self, verdict: Verdict) -> float:
            raise Unscored("no_idea")

    with pytest.raises(PluginError, match="plugin 'mine' failed in confession_reward: Unscored: no_idea"):
        manager_with(Plugin()).hook.confession_reward(verdict=Verdict({"a": 1.0}), confession=CONFESSION)


def test_installed_plugins_are_found_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "from_a_wheel.py").write_text(
        "from confession_plugin import hookimpl\n@hookimpl\ndef confession_reward(verdict): return 3.0"
    )
    info = tmp_path / "from_a_wheel-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: from-a-wheel\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[confession_plugin]\nwheel = from_a_wheel\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_plugins(Config()).get_plugin("wheel") is not None
    assert load_plugins(Config(block=("wheel",))).get_plugin("wheel") is None


def test_the_trace_switch_prints_every_call(capsys: pytest.CaptureFixture[str]) -> None:
    manager = configured(Config(trace_hooks=True))
    manager.hook.confession_request(rollout=ROLLOUT)
    printed = capsys.readouterr().err
    assert "confession_request" in printed and "What is 3 + 4?" in printed


# ── Built-in: which prompts confess ──


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 3, 8, 128])
def test_select_takes_the_exact_share(probability: float, size: int) -> None:
    hook = configured(Config(probability=probability)).hook
    counts, position = [], 0
    for step in range(1, 41):
        batch = PromptBatch(("p",) * size, ("",) * size, position, step, seed=3)
        chosen = hook.confession_select(batch=batch)
        assert chosen == hook.confession_select(batch=batch)  # a function of the batch: a resumed run repeats it
        counts.append(sum(chosen))
        position += size
    assert all(abs(count - probability * size) < 1 for count in counts)
    assert abs(sum(counts) - probability * position) < 1


def test_select_depends_on_seed_and_position_and_prefers_no_place() -> None:
    hook = configured(Config(probability=0.25)).hook
    by_place = [0] * 8
    seen = set()
    for step in range(400):
        chosen = hook.confession_select(batch=PromptBatch(("p",) * 8, ("",) * 8, 8 * step, step, seed=step % 7))
        seen.add(tuple(chosen))
        by_place = [total + one for total, one in zip(by_place, chosen, strict=True)]
    assert len(seen) == 4  # evenly spaced, from every place
    assert all(60 < total < 140 for total in by_place)  # 100 expected, sd 8.7


@pytest.mark.parametrize("probability", [0.1, 0.25, 1 / 3, 0.6])
@pytest.mark.parametrize("train_size", [4, 12, 13])
def test_every_training_batch_and_every_stretch_of_it_has_its_share(probability: float, train_size: int) -> None:
    """Sampled in parts that do not end where training batches end, as with oversampling at the end of an episode."""
    hook = configured(Config(probability=probability)).hook
    chosen: list[bool] = []
    for step, size in enumerate([30, 7, 1, 64, 5, 45] * 4):
        place = len(chosen) % train_size
        prompts = ("p",) * size
        batch = PromptBatch(prompts, prompts, len(chosen), step, seed=5, train_size=train_size, train_place=place)
        chosen += hook.confession_select(batch=batch)
    for start in range(0, len(chosen) - train_size, train_size):
        assert abs(sum(chosen[start : start + train_size]) - probability * train_size) < 1
    whole = PromptBatch(("p",) * 48, ("",) * 48, 0, 1, seed=5, train_size=48)
    spread = hook.confession_select(batch=whole)
    for ranks in (2, 3, 4, 6):
        counts = [sum(spread[48 * rank // ranks : 48 * (rank + 1) // ranks]) for rank in range(ranks)]
        assert max(counts) - min(counts) <= 1


def test_a_replacement_takes_the_choice_of_the_group_it_replaces() -> None:
    hook = configured(Config(probability=0.5)).hook
    for was_asked in (False, True):
        batch = PromptBatch(("p",), ("",), 9, 1, seed=0, train_size=4, train_place=2, replaced=(was_asked,))
        assert hook.confession_select(batch=batch) == [was_asked]


# ── Built-in: the trace ──


def test_the_trace_holds_a_request_once_in_each_file(tmp_path: Path) -> None:
    asked = ["a", "a", "b", "a", "b"]
    one_file, many_files = (
        configured(Config(trace_dir=str(tmp_path / str(size)), trace_max_mb=size)) for size in (1.0, 0.000001)
    )
    for manager in (one_file, many_files):
        for text in asked:
            confession = Confession(request=text, text="{}", report={})
            manager.hook.confession_judged(record=Judged(ROLLOUT, confession, Verdict(unscored="timeout"), None))
    (file,) = (tmp_path / "1.0").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line.get("request") for line in lines] == ["a", None, "b", None, None]
    texts = {line["request_id"]: line["request"] for line in lines if "request" in line}
    assert [texts[line["request_id"]] for line in lines] == asked
    alone = [json.loads(file.read_text())["request"] for file in sorted((tmp_path / "1e-06").iterdir())]
    assert alone == asked  # each file can be read alone


def test_the_trace_rotates_and_keeps_odd_text(tmp_path: Path) -> None:
    manager = configured(Config(trace_dir=str(tmp_path), trace_max_mb=0.001))
    odd = Confession(request="", text="\ud800 \u202e", report=object())
    for _ in range(5):
        manager.hook.confession_judged(record=Judged(ROLLOUT, odd, Verdict(unscored="timeout"), None))
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) > 1
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(lines) == 5
    assert lines[0]["confession"] == "\ud800 \u202e" and lines[0]["honesty_reward"] is None
    assert lines[0]["unscored"] == "timeout"
