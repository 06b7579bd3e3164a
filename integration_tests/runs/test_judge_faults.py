"""Whole runs with a judge that fails: in eight ways at once, killed and started again, killed for good.

The judge is a server on real sockets, the run is the real command line, and what is checked is what the run leaves
behind: its trace, its metrics, its checkpoints, the advantages it trained on.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import CliResult, Tiny, base_flags, run_cli
from judge_server import Answer, Call, JudgeProcess, JudgeServer, error, says, varied, verdict
from whole_runs import WORLDS, confession_flags, trace

from confession_plugin import Confession, Rollout
from confession_plugin.judging.rubric import Rubric, sections_of
from confession_plugin.judging.verdict import LABELS

pytestmark = pytest.mark.e2e

MODEL = "judge-of-the-faults"
KEY = "sk-0123456789-never-to-be-seen-again"


def judged_by(url: str, tmp_path: Path, probability: float = 1.0) -> list[str]:
    return [*confession_flags(tmp_path, probability, url), "--confession.judge_model", MODEL]


def case_of(record: dict[str, Any]) -> str:
    """The message that a confession in the trace was judged by."""
    rollout = Rollout(
        record["prompt"],
        record["answer"],
        record["transcript"],
        visible_answer=record.get("visible_answer", record["answer"]),
        visible_transcript=record.get("visible_transcript", record["transcript"]),
    )
    confession = Confession(
        record.get("request", ""),
        record["confession"],
        visible=record.get("visible_confession", record["confession"]),
        report=record["report"],
    )
    return Rubric.load(None, "judge.txt").messages(sections_of(rollout, confession))[-1]["content"]


def check_scored(record: dict[str, Any]) -> None:
    """It has the ratings that the judge gave to this very case; an empty one, which meets no judge, the lowest."""
    ratings = {name: LABELS[label] for name, label in varied(case_of(record)).items()}
    ratings = {"readable": 0.0} if record["problem"] else ratings
    assert (record["unscored"], record["ratings"]) == (None, ratings)
    assert record["honesty_reward"] == pytest.approx(statistics.mean(ratings.values()))


def check_unscored(record: dict[str, Any], reason: str, detail: str) -> None:
    """It has no number of any kind."""
    assert (record["unscored"], record["ratings"], record["honesty_reward"]) == (reason, {}, None)
    assert detail in record["judge"]


def check_metrics(result: CliResult, records: list[dict[str, Any]], steps: int) -> None:
    """Every step was trained, on what the trace says: the means are those of the scored ones."""
    assert len(result.values("train/policy_loss")) == steps
    for step in range(steps):
        batch = [record for record in records if record["step"] == step + 1]
        rewards = [record["honesty_reward"] for record in batch if record["unscored"] is None]
        rate = result.values("train/confession/unscored_rate")[step]
        assert rate == pytest.approx(1 - len(rewards) / len(batch), abs=1e-6)
        for reason, count in Counter(record["unscored"] for record in batch if record["unscored"]).items():
            assert dict(result.scalars[f"train/confession/unscored/{reason}"])[step + 1] == count
        if rewards:
            means = dict(result.scalars["train/confession/honesty_mean"])
            assert means[step + 1] == pytest.approx(statistics.mean(rewards), rel=1e-4)


# ── thirty percent faults ──


class Fault(NamedTuple):
    """One way to fail, and what has to come of it."""

    reason: str
    """The verdict's `unscored`."""
    detail: str
    """Words in the trace that tell it from other faults of this reason."""
    requests: int
    """One case's requests with ``--confession.judge_retries 0``: what is no verdict is asked for once more."""


FAULTS = {
    "refused": Fault("connection", "Connect call failed", 1),
    "reset within the body": Fault("connection", "payload", 1),
    "rate limited": Fault("rate_limited", "HTTP 429", 1),
    "broken": Fault("http_5xx", "HTTP 500", 1),
    "hanging": Fault("timeout", "no reply within", 1),
    "half the JSON": Fault("bad_response", "not JSON", 2),
    "another schema": Fault("unparsable", "not one of fully", 2),
    "empty": Fault("unparsable", "the reply is empty", 2),
}


class FaultyJudge:
    """Every case has a fate, dealt in the order of arrival: of 80 cases, 3 meet each fault.

    A case is known by its text, so a second request for it meets the same fate, and a confession in the trace can be
    led back to its fate by putting the case together again.
    """

    def __init__(self, closed_port: int) -> None:
        self.closed = f"http://127.0.0.1:{closed_port}/v1/chat/completions"
        self.deal = [*FAULTS] * 3 + [None] * 56
        random.Random(0).shuffle(self.deal)
        self.fates: dict[str, str | None] = {}
        self.requests: Counter[str | None] = Counter()
        self.keys: set[str] = set()

    async def __call__(self, call: Call) -> Answer:
        case = call.case
        if "Name a primary colour." in case:  # asked before the run starts
            return verdict(call)
        fate = self.fates.setdefault(case, self.deal[len(self.fates) % len(self.deal)])
        self.requests[fate] += 1
        self.keys.add(call.headers["authorization"])
        # As some servers do, errors repeat what they were sent; at changing places, so that a cut may fall into it.
        told = f"{'.' * (7 * len(self.fates) % 300)} Authorization: {call.headers['authorization']}"
        good = verdict(call, reasons=told, **varied(case))
        match fate:
            case "refused":
                # The judge sends the call on to a worker that is gone: so it knows which calls found nothing there.
                return Answer(told.encode(), 307, {"Location": self.closed})
            case "reset within the body":
                return Answer(good.body, fault="cut")
            case "rate limited":
                return error(429, told, retry_after="1")
            case "broken":
                return error(500, told)
            case "hanging":
                return Answer(fault="hang")
            case "half the JSON":
                return Answer(good.body[: len(good.body) // 2])
            case "another schema":
                return says(json.dumps({"reasons": told, "objectives": told, "analysis": 1}))
            case "empty":
                return says("")
        return good


def test_with_thirty_percent_faults_training_goes_on_and_no_failure_is_a_score(
    tiny: Tiny, tmp_path: Path, short_tmp: Path
) -> None:
    """Eight faults, each counted exactly; the scored ones train as if the others had never been sampled.

    With ``--confession.judge_retries 0`` a case costs one request, and two where the reply is no verdict: the number
    of requests of each fault is the trace's number of cases times `Fault.requests`.
    """
    steps, per_step = 4, 60
    flags = [*base_flags(tiny, tmp_path, steps=steps), "--algo.kl.init_coef", "0", "--ckpt.save_steps", "2"]
    flags += ["--rollout.batch_size", "6", "--rollout.n_samples_per_prompt", "10", "--train.batch_size", "60"]
    flags += ["--data.max_samples", str(6 * steps)]
    env = {"THE_JUDGES_KEY": KEY, "OPENAI_LOG": "debug", "TMPDIR": str(short_tmp), "RAY_TMPDIR": str(short_tmp)}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        faulty = FaultyJudge(closed.getsockname()[1])
        with JudgeServer(faulty) as server:
            ours = [*judged_by(server.url, tmp_path), "--confession.judge_key_env", "THE_JUDGES_KEY"]
            ours += ["--confession.judge_retries", "0", "--confession.judge_timeout", "5", "--confession.trace_hooks"]
            spy = f"{WORLDS / 'any_report.py'},{WORLDS / 'spy_advantages.py'}"
            ours[ours.index("--confession.plugins") + 1] = spy
            result = run_cli(tmp_path, *flags, *ours, env=env)
    records = trace(tmp_path)
    assert len(records) == steps * per_step
    check_every_confession(records, faulty)
    check_metrics(result, records, steps)
    check_advantages(records, tmp_path / "advantages.txt", steps)
    check_secret(faulty, tmp_path, short_tmp)


def check_every_confession(records: list[dict[str, Any]], faulty: FaultyJudge) -> None:
    judged = [record for record in records if record["problem"] is None]
    assert {case_of(record) for record in judged} == faulty.fates.keys()
    seen: Counter[str | None] = Counter()
    for record in judged:
        fate = faulty.fates[case_of(record)]
        seen[fate] += 1
        if fate is None:
            check_scored(record)
        else:
            check_unscored(record, FAULTS[fate].reason, FAULTS[fate].detail)
    assert seen.keys() == {None, *FAULTS}
    assert 0.28 < 1 - seen[None] / len(judged) < 0.32
    assert faulty.requests == {fate: seen[fate] * (FAULTS[fate].requests if fate else 1) for fate in seen}


def check_advantages(records: list[dict[str, Any]], spied: Path, steps: int) -> None:
    """Scored confessions train, by their distance from the mean of their group's scored ones; no other does."""
    lines = [json.loads(line) for line in spied.read_text().splitlines()]
    assert len(lines) == steps
    for step, rows in enumerate(lines, start=1):
        expected = []
        batch = [record for record in records if record["step"] == step and record["honesty_reward"] is not None]
        for group in {record["group"] for record in batch}:
            members = [record for record in batch if record["group"] == group]
            rewards = [record["honesty_reward"] for record in members]
            mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
            expected += [
                (member["confession_tokens"], (member["honesty_reward"] - mean) / deviation) for member in members
            ]
        assert [length for length, _ in sorted(rows)] == [length for length, _ in sorted(expected)]
        assert [value for _, value in sorted(rows)] == pytest.approx([v for _, v in sorted(expected)], abs=1e-4)


def check_secret(faulty: FaultyJudge, run: Path, ray: Path) -> None:
    """The judge's key is in nothing that the run left, though the server repeated it wherever it could."""
    assert faulty.keys == {f"Bearer {KEY}"}
    # Output, trace, TensorBoard's events, checkpoints, Ray's logs; nor is there the beginning of a key that was cut.
    assert not files_with(KEY[:8], run, ray)
    # The search can find: what stands where the key was, and the judge's name in the logs of Ray's own processes.
    assert {file.suffix for file in files_with("Authorization: Bearer [key]", run, ray)} >= {".jsonl", ".log"}
    assert files_with(MODEL, run) and "runtime_env_agent.log" in {file.name for file in files_with(MODEL, ray)}
    assert files_with("confession/unscored_rate", run / "tb") and files_with("best_eval_metric_key", run / "ckpt")


def files_with(text: str, *folders: Path) -> list[Path]:
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return [file for file in files if text.encode() in file.read_bytes()]


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder for Ray's sessions that outlives the run; its path is short, for the sake of sockets."""
    folder = Path(tempfile.mkdtemp(prefix="cp", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


# ── killed ──


@contextmanager
def running(tmp_path: Path, *flags: str, **options: Any) -> Iterator[Future[CliResult]]:
    """`run_cli` beside the test, which goes on; at the end the test waits for it."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(run_cli, tmp_path, *flags, **options)


def wait(run: Future[CliResult], until: Callable[[], bool]) -> None:
    while not until():
        if run.done():
            raise AssertionError(f"the run ended too early\n{run.result().last_lines()}")
        time.sleep(0.05)


def test_a_restarted_judge_is_found_again(tiny: Tiny, tmp_path: Path) -> None:
    """SIGKILL in the middle of a run; started again when the first call has used up its retries, seconds later."""
    steps, per_step = 12, 8
    with JudgeProcess() as judge:
        flags = [*base_flags(tiny, tmp_path, steps=steps), *judged_by(judge.url, tmp_path, 0.5)]
        with running(tmp_path, *flags) as run:
            wait(run, lambda: len(trace(tmp_path)) >= 3 * per_step)
            judge.kill()
            killed = time.monotonic()
            wait(run, lambda: any(record["unscored"] for record in trace(tmp_path)))
            judge.start()
            gap = time.monotonic() - killed
        result = run.result()
    records = trace(tmp_path)
    assert len(records) == steps * per_step
    for record in records:
        if record["unscored"]:
            check_unscored(record, "connection", f"Connect call failed ('127.0.0.1', {judge.port})")
        else:
            check_scored(record)
    check_metrics(result, records, steps)
    lost = [number for number, record in enumerate(records) if record["unscored"]]
    assert gap > 2 and lost and lost[0] >= 3 * per_step
    rates = result.values("train/confession/unscored_rate")
    assert rates[0] == rates[-1] == 0


def test_a_judge_killed_for_good_stops_the_run_and_its_last_checkpoint_resumes(tiny: Tiny, tmp_path: Path) -> None:
    steps, per_step = 12, 16
    with JudgeProcess() as judge:
        flags = [*base_flags(tiny, tmp_path, steps=steps), *judged_by(judge.url, tmp_path)]
        flags += ["--ckpt.save_steps", "2", "--confession.judge_retries", "1"]
        with running(tmp_path, *flags, expect=3) as run:
            wait(run, lambda: len(trace(tmp_path)) >= 5 * per_step)
            judge.kill()
        stopped = run.result()
        before = trace(tmp_path)
        saved = int((tmp_path / "ckpt" / "_actor" / "latest").read_text().removeprefix("global_step"))
        judge.start()
        resumed = run_cli(tmp_path, *flags, "--ckpt.load_enable")
    # One line says why, where and how to fix it, and nothing comes after it.
    [line] = [line for line in stopped.output.splitlines() if line.startswith("confession: ")]
    assert line == stopped.output.splitlines()[-1]
    found = re.match(r"confession: (\d+) of the last 64 confessions could not be scored \(connection (\d+)\)", line)
    assert found and 33 <= int(found[1]) == int(found[2])
    assert f"; the last: connection: {judge.url}: Cannot connect to host" in line
    assert line.endswith("; fix the judge, or raise --confession.max_unscored (now 0.5)")
    # Half of 64 may be lost; the one that was too much, and those under way beside it, are in the trace as well.
    lost = [record for record in before if record["unscored"]]
    assert 33 <= len(lost) <= 33 + per_step
    for record in lost:
        check_unscored(record, "connection", judge.url)
    # Every second step was saved; the steps after the last checkpoint are done again.
    assert saved >= 4 and before[-1]["step"] - 2 <= saved <= before[-1]["step"]
    after = trace(tmp_path)[len(before) :]
    assert Counter(record["step"] for record in after) == dict.fromkeys(range(saved + 1, steps + 1), per_step)
    for record in after:
        check_scored(record)
    logged = re.findall(r"Global step (\d+):", resumed.output)
    assert [int(step) for step in logged] == list(range(saved + 1, steps + 1))
