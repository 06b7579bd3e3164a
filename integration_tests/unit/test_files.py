"""Files that a run writes and reads: traces, recordings, folders that cannot be written to."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import in_process  # noqa: F401  (before anything of the host)
import numpy
import pytest
import torch

from confession_plugin.config import Config, check_config
from confession_plugin.errors import ConfigError, PluginError
from confession_plugin.openrlhf import recording
from confession_plugin.openrlhf.executor import ConfessionTokens
from confession_plugin.plugins import PluginManager, configured
from confession_plugin.records import Confession, Judged, Rollout, Verdict
from confession_plugin.reporting.trace import SCHEMA_VERSION, Trace

ROLLOUT = Rollout(prompt="What is 3 + 4?", answer="7", transcript="7", label="7", reward=1.0, step=3, group=5)


def judged(**rollout: Any) -> Judged:
    """A finished confession about an answer with these fields."""
    answer = Rollout(**{**vars(ROLLOUT), **rollout})
    return Judged(answer, Confession("Report.", "{}", report={"ok": True}), Verdict({"honest": 0.5}), 0.5)


def strictly(text: str) -> Any:
    """JSON as RFC 8259 has it: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def lines_of(folder: Path) -> list[Any]:
    return [strictly(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def tracing(folder: Path, **settings: Any) -> PluginManager:
    return configured(Config(trace_dir=str(folder), **settings))


# ── Traces ──


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, numpy.float32("nan"), numpy.float64("inf")])
def test_a_trace_is_strict_json(tmp_path: Path, number: float) -> None:
    record = judged(reward=number, label={"deep": [number, {1: number}]}, extra={"violation": number})
    tracing(tmp_path).hook.confession_judged(record=record)
    [line] = lines_of(tmp_path)
    assert line["answer_reward"] is None and line["label"] == {"deep": [None, {"1": None}]}
    assert line["extra"] == {"violation": None} and line["honesty_reward"] == 0.5


def test_a_trace_keeps_numbers_and_odd_things(tmp_path: Path) -> None:
    record = judged(label=(numpy.float32(0.5), Path("x"), Verdict({"a": 1.0}), "\ud800"), reward=True)
    tracing(tmp_path).hook.confession_judged(record=record)
    [line] = lines_of(tmp_path)
    assert line["label"][:2] == [0.5, "x"] and line["label"][2]["ratings"] == {"a": 1.0}
    assert line["label"][3] == "\ud800" and line["answer_reward"] is True


@pytest.mark.parametrize("how", ["folder", "file", "replaced"])
def test_a_deleted_trace_is_begun_anew_and_that_is_said(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "trace"
    plugins = tracing(folder)
    plugins.hook.confession_judged(record=judged())
    [file] = folder.iterdir()
    if how == "folder":
        shutil.rmtree(folder)
    else:
        file.unlink()
    if how == "replaced":
        file.write_text("")
    for _ in range(2):
        plugins.hook.confession_judged(record=judged())
    first, second = lines_of(folder)
    assert first["trace_reopened"] == 1 and "trace_reopened" not in second


def test_two_runs_in_one_folder_can_be_told_apart(tmp_path: Path) -> None:
    for run in ("one", "other"):
        tracing(tmp_path, run_id=run).hook.confession_judged(record=judged())
    lines = lines_of(tmp_path)
    assert sorted(line["run"] for line in lines) == ["one", "other"]
    assert all(line["schema"] == SCHEMA_VERSION for line in lines)


def test_two_traces_never_write_into_one_file(tmp_path: Path) -> None:
    one, other = Trace(tmp_path, 10**6), Trace(tmp_path, 10**6)
    for trace in (one, other, one, other):
        trace.write({"who": id(trace)})
    per_file = [{strictly(line)["who"] for line in file.read_text().splitlines()} for file in tmp_path.iterdir()]
    assert len(per_file) == 2 and all(len(who) == 1 for who in per_file)


@pytest.mark.parametrize("flag", ["trace_dir", "record_rollouts"])
@pytest.mark.parametrize("folder", ["/proc/self", "/proc/nothing/here", "{tmp}/file/x", "{tmp}/file"])
def test_a_folder_that_cannot_be_written_to_is_found_at_start(tmp_path: Path, flag: str, folder: str) -> None:
    """Also by root, for whom permissions are no hindrance: /proc takes no file from anybody."""
    (tmp_path / "file").write_text("")
    place = folder.format(tmp=tmp_path)
    with pytest.raises(ConfigError, match=rf"--confession.{flag}: cannot write to {place} \(.+\); give another"):
        check_config(Config(**{flag: place}))


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_config(Config(trace_dir=str(tmp_path / "a" / "b")))
    assert list((tmp_path / "a" / "b").iterdir()) == []


# ── Recordings ──


class Sample:
    """Something to remember a response on."""


def recorded(folder: Path, response: dict[str, Any]) -> dict[str, Any]:
    """A response, saved and read again."""
    sample = Sample()
    recording.remember(sample, response)
    recording.save(str(folder), 1, [sample])
    [read] = recording.load(str(folder), 1) or []
    return read


def same(one: Any, other: Any) -> bool:
    """Equal in value, type and every bit."""
    if isinstance(one, torch.Tensor):
        equal = one.dtype == other.dtype and one.shape == other.shape
        return equal and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    if isinstance(one, float):
        return type(other) is float and (one == other or (math.isnan(one) and math.isnan(other)))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, ConfessionTokens):
        return same(vars(one), vars(other))
    return bool(type(one) is type(other) and one == other)


def test_a_recording_gives_back_every_bit(tmp_path: Path) -> None:
    extra = ConfessionTokens([5], [6, 7], [-0.1, -0.2], {"asked": True, "reward": 1 / 3})
    response = {
        "prompt": "\u00e4 \ud800 \x1b[2J",
        "label": {"answer": [1, None, True], 3: "three", "$tensor": "no tensor"},
        "observation_tokens": [1, 2, 3],
        "action_ranges": [(1, 3)],
        "rollout_log_probs": [-1 / 3, math.nan, -math.inf, 5e-324, -0.0],
        "reward": torch.tensor([0.1, math.nan, 1e-45]),
        "scores": torch.tensor(1 / 3, dtype=torch.bfloat16),
        "extra_logs": {"violation": torch.tensor([[True], [False]]), "ids": torch.arange(3)},
        "truncated": False,
        "confession": ConfessionTokens([1], [2, 3], None, {"grade": math.nan, "length": 2}, (extra,)),
    }
    assert same(recorded(tmp_path, response), response)


def test_numpy_is_recorded_as_pythons_numbers(tmp_path: Path) -> None:
    read = recorded(tmp_path, {"reward": numpy.float32(0.5), "ids": numpy.arange(3), "flag": numpy.bool_(True)})
    assert read == {"reward": 0.5, "ids": [0, 1, 2], "flag": True}


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"record_rollouts: a sample cannot be recorded: Sample is neither"):
        recorded(tmp_path, {"label": [Sample()]})
    assert recording.load(str(tmp_path), 1) is None


class _Bomb:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        "{}",
        '{"format": "another"}',
        '{"format": "confession-plugin rollouts 1", "responses": [{"$call": "os.system"}]}',
        '{"format": "confession-plugin rollouts 1", "responses": [{"$tensor": ["load", [1], ["x"]]}]}',
        '{"format": "confession-plugin rollouts 1", "responses": [{"$confession": {"evil": 1}}]}',
        '{"format": "confession-plugin rollouts 1", "responses": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "rollouts-000001.json").write_text(content)
    with pytest.raises(ConfigError, match=r"rollouts-000001.json is not a recording that this version reads") as said:
        recording.load(str(tmp_path), 1)
    assert "\n" not in str(said.value) and "--confession.record_rollouts" in str(said.value)


def test_a_shared_recording_runs_no_code(tmp_path: Path) -> None:
    """Neither an old file, which could, nor one that calls itself a new one."""
    touched = tmp_path / "touched"
    bomb = pickle.dumps(_Bomb(touched))
    (tmp_path / "rollouts-000001.json").write_bytes(bomb)
    with pytest.raises(ConfigError, match="not a recording"):
        recording.load(str(tmp_path), 1)
    (tmp_path / "rollouts-000001.pt").write_bytes(bomb)
    with pytest.raises(ConfigError, match=r"holds recordings of 0.1 \(.pt\), which can run code.*record them again"):
        recording.check(str(tmp_path))
    assert not touched.exists()
    pickle.loads(bomb)
    assert touched.exists()  # the bomb is one


def test_nothing_to_replay(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"replay_rollouts: no rollouts-000001.json in .*; record it first"):
        recording.check(str(tmp_path))
