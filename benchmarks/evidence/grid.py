"""Runs of the report world, one after the other, each a JSON line in a results file.

A run that has its line is not repeated, so a long grid can be stopped at any time (Ctrl-C ends every process of the
run under way) and taken up again.  A run with other settings, another world or other steps is another run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REPORTS = ROOT / "examples" / "reports"
sys.path.insert(0, str(ROOT / "integration_tests" / "support"))

from harness import QUIET, RUN_ENV_VAR, die_with_parent, end_processes  # noqa: E402

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training run and what is measured on it."""

    experiment: str
    arm: str
    seed: int
    steps: int = 30
    environment: Mapping[str, str] = field(default_factory=dict)
    """For ``run.sh``, e.g. STOCK=1 or JUDGE=..."""
    flags: tuple[str, ...] = ()
    """Behind ``run.sh``'s own.  ``{out}`` is the run's folder."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name -> text of files to write into the run's folder first."""
    start: str = ""
    """The arm of this experiment and seed whose trained model this run begins with."""
    prepare: str = ""
    """A script of this folder, called with START OUT before the run; makes OUT/start (a model)."""
    without: str = ""
    """A kind of instruction whose prompts are left out of training."""
    probes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"builtin": ()})
    """Name -> further words for ``probe.py`` on the trained model."""
    base: bool = False
    """Probe the untrained model instead."""
    after: str = ""
    """A script of this folder, called with the run's folder and ``--json FILE`` when it is done."""

    @property
    def key(self) -> str:
        return f"{self.experiment}/{self.arm}/{self.seed}"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


def read(results: Path) -> list[Line]:
    """The last finished line of each run; a line cut off by a crash is no line."""
    lines: dict[tuple[str, str], Line] = {}
    for text in results.read_text().splitlines() if results.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "failed" not in line:
            lines[line["key"], line["fingerprint"]] = line
    return list(lines.values())


def run_grid(runs: Iterable[Run], world: Path, out: Path, results: Path, *, say: Callable[[str], None] = print) -> int:
    """Do what is not done yet; the number of runs that failed."""
    signal.signal(signal.SIGTERM, _interrupt)
    runs, failed = list(runs), 0
    for number, run in enumerate(runs, start=1):
        if (run.key, _settings(run, world)) in {(line["key"], line["fingerprint"]) for line in read(results)}:
            say(f"[{number}/{len(runs)}] {run.key}: done before")
            continue
        line = one(run, world, out)
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        failed += "failed" in line
        outcome = line.get("failed") or f"{line['minutes']:.1f} minutes"
        say(f"[{number}/{len(runs)}] {run.key}: {outcome}")
    return failed


def one(run: Run, world: Path, out: Path) -> Line:
    """Train, measure, probe."""
    folder, started = out / run.experiment / _folder_name(run.arm, run.seed), time.monotonic()
    line: Line = {"key": run.key, "fingerprint": _settings(run, world), "experiment": run.experiment}
    line |= {"arm": run.arm, "seed": run.seed, "steps": run.steps, "without": run.without}
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in run.files.items():
            (folder / name).write_text(text)
        command, environment = _training(run, world, folder)
        line["command"] = shlex.join([f"{key}={value}" for key, value in environment.items()] + command)
        if run.steps:
            _call(command, folder / "console.log", environment)
        trained = time.monotonic()
        if run.steps:
            line["measured"] = _json_of(REPORTS / "measure.py", [str(folder)], folder)
            if not line["measured"]["steps"]:
                raise ValueError("no step of the run can be read")
        if run.after:
            line["after"] = _json_of(HERE / run.after, [str(folder)], folder, run.environment)
        model = world / "model" if run.base else folder / "model"
        line["probes"] = {
            name: _json_of(REPORTS / "probe.py", [str(model), *more], folder) for name, more in run.probes.items()
        }
        line["training_minutes"] = (trained - started) / 60
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        line["failed"] = f"{type(error).__name__}: {error}; see {folder}"
    return {**line, "minutes": (time.monotonic() - started) / 60}


def _training(run: Run, world: Path, folder: Path) -> tuple[list[str], dict[str, str]]:
    environment = {"WORLD": str(world), "OUT": str(folder), "STEPS": str(run.steps), "SEED": str(run.seed)}
    flags = [flag.format(out=folder) for flag in run.flags]
    if run.start:
        start = folder.parent / _folder_name(run.start, run.seed)
        if run.prepare:
            script = [sys.executable, str(HERE / run.prepare), str(start), str(folder)]
            _call(script, folder / "prepare.log", {})
        flags += ["--actor.model_name_or_path", str(folder / "start" if run.prepare else start / "model")]
    if run.without:
        flags += ["--data.prompt_dataset", str(_prompts_without(run.without, world, folder))]
    return ["bash", str(REPORTS / "run.sh"), *flags], {**environment, **run.environment}


def _prompts_without(kind: str, world: Path, folder: Path) -> Path:
    """The training prompts that do not ask for this kind of instruction."""
    sys.path.insert(0, str(REPORTS))
    from world import read_task

    rows = [row for row in (world / "prompts.jsonl").read_text().splitlines() if kind not in read_task(_text(row))]
    if not rows:
        raise ValueError(f"every prompt of {world} has an instruction of the kind {kind}")
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


def _text(row: str) -> str:
    prompt = json.loads(row)["input"]
    return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)


def _json_of(script: Path, words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Any:
    path = folder / f"{script.stem}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, str(script), *words, "--json", str(path)]
    _call(command, folder / "measure.log", environment or {})
    return json.loads(path.read_text())


def _call(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """To its end, in a scratch folder of its own; whatever happens, no process of it stays.

    Raises:
        subprocess.CalledProcessError: another exit status than 0.
    """
    run_id, scratch = uuid.uuid4().hex, tempfile.mkdtemp(prefix="ev", dir="/tmp")  # a socket's path must be short
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"TMPDIR": scratch, "RAY_TMPDIR": scratch, RUN_ENV_VAR: run_id, "PATH": path}
    own["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    try:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                list(command),
                env={**os.environ, **QUIET, **own, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, list(command)[:2])
    finally:
        end_processes(run_id)
        shutil.rmtree(scratch, ignore_errors=True)


def _folder_name(arm: str, seed: int) -> str:
    return f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', arm)}-{seed}"


def _settings(run: Run, world: Path) -> str:
    return f"{run.fingerprint}-{world.name}"


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def built_world(seed: int = 0, lessons: int = 500, builds: Path = ROOT / "build" / "worlds") -> Path:
    """The world, built once for each content of its sources; with fewer lessons it is there sooner and sees less."""
    sources = hashlib.sha256()
    for file in sorted(REPORTS.glob("*.py")):
        sources.update(file.name.encode() + file.read_bytes())
    world = builds / f"reports-{sources.hexdigest()[:10]}-{seed}-{lessons}"
    if not (world / "built").exists():
        shutil.rmtree(world, ignore_errors=True)
        world.mkdir(parents=True)
        words = ["--seed", str(seed), "--lessons", str(lessons)]
        _call([sys.executable, str(REPORTS / "build.py"), str(world), *words], world / "build.log", {})
        (world / "built").touch()
    return world
