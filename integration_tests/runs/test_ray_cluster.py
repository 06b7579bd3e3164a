"""A run that joins a Ray cluster which was started before it, from another shell: `ray start`, then the driver."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import QUIET, RUN_ENV_VAR, Tiny, base_flags, die_with_parent, end_processes, run_cli
from whole_runs import WORLDS, confession_flags, trace

KEY = "sk-never-to-be-written"
PASSWORD = "proxy-pass-never-to-be-written"

#: What the entry point does around ``ray.init``, with a small actor in place of the host's.
DRIVER = """
import json, os, ray
from confession_plugin import session, startup
from confession_plugin.config import Config
from confession_plugin.openrlhf import cluster
from confession_plugin.openrlhf.rollout_actor import confessing_actor
from confession_plugin.plugins import configured

config = Config(enable=True, judge_key_env="MY_KEY")
session.begin(config, configured(config))

class Host:
    async def __init__(self):
        self.executor = None

    async def look(self):
        names = ("MY_KEY", "https_proxy", "THEIR_HOOK", "CONFESSION_PLUGIN_CONFIG")
        return {"seams": type(self.executor).__name__, **{name: os.environ.get(name) for name in names}}

with startup.exits(startup.EXIT_STOPPED):
    cluster.start_ray(ray.init, config, None, {})
    print("FOUND " + json.dumps(ray.get(confessing_actor(ray.remote(Host)).remote().look.remote())), flush=True)
"""


#: A plugin that notes what happens to it, and in which process.
NOTING = """
import os
from confession_plugin import hookimpl

def note(*words):
    with open({notes!r}, "a") as file:
        file.write(" ".join(map(str, (os.getpid(), *words))) + chr(10))

note("import")

@hookimpl
def confession_configure(config):
    note("configure", config.seed, config.request_format)
"""


@contextmanager
def ray_started(env: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """`ray start --head` from a shell with this environment: its address, and the folder of its files."""
    run_id, folder = uuid.uuid4().hex, Path(tempfile.mkdtemp(prefix="cr", dir="/tmp"))
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port=0", "--num-cpus=2"]
    command += ["--include-dashboard=false", f"--object-store-memory={100 * 2**20}", f"--temp-dir={folder}"]
    log = folder.with_suffix(".log")
    shell = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                env=shell | QUIET | {RUN_ENV_VAR: run_id, "RAY_prestart_worker_first_driver": "0"} | env,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            deadline = time.monotonic() + 240
            while not (found := re.search(r"--address='([\d.:]+)'", log.read_text())):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield found[1], folder
    finally:
        end_processes(run_id)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink(missing_ok=True)


def written(folder: Path, text: str) -> list[Path]:
    """Ray's files that hold this text."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return [file for file in files if text.encode() in file.read_bytes()]


@pytest.mark.e2e
def test_key_proxy_and_the_jobs_hook_reach_a_cluster_started_before_them(tmp_path: Path) -> None:
    """And neither key nor password stands in any of Ray's files or in the output."""
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "their_hooks.py").write_text("import os\ndef mark():\n    os.environ['THEIR_HOOK'] = 'called'\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    job = {"runtime_env": {"worker_process_setup_hook": "their_hooks.mark", "env_vars": {"THEIRS": "1"}}}
    with ray_started({"PYTHONPATH": paths, "CONFESSION_PLUGIN_CPU": "1"}) as (address, folder):
        exported = {"MY_KEY": KEY, "https_proxy": f"http://me:{PASSWORD}@127.0.0.1:9"}
        settings = {"RAY_ADDRESS": address, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
        # With stand-ins in the workers and a driver that joins the cluster, as one on a head node does.
        own = {"PYTHONPATH": paths, "CONFESSION_PLUGIN_CPU": "0"}
        result = run_cli(tmp_path, module="driver", env={**own, **exported, **settings}, timeout=300)
        leaks = [file for secret in (KEY, PASSWORD) for file in written(folder, secret)]
        assert written(folder, "CONFESSION_PLUGIN_CONFIG"), "Ray's files show the runtime environment"
    [line] = re.findall(r"FOUND (.*)", result.output)
    found = json.loads(line)
    assert found["seams"] == "ConfessingExecutor" and found["THEIR_HOOK"] == "called"
    assert found["MY_KEY"] == KEY and found["https_proxy"] == exported["https_proxy"]
    assert json.loads(found["CONFESSION_PLUGIN_CONFIG"])["judge_key_env"] == "MY_KEY"
    assert leaks == []
    assert KEY not in result.output.replace(line, "") and PASSWORD not in result.output.replace(line, "")


@pytest.mark.e2e
def test_a_node_without_the_package_ends_the_run_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    missing = tmp_path / "node" / "confession_plugin"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ModuleNotFoundError('no confession_plugin on this node')\n")
    with ray_started({"PYTHONPATH": str(missing.parent)}) as (address, _):
        settings = {"RAY_ADDRESS": address, "CONFESSION_PLUGIN_CPU": "0"}
        result = run_cli(tmp_path, module="driver", env=settings, timeout=300, expect=2)
    assert "Traceback" not in result.output
    *others, last = result.output.strip().splitlines()
    assert re.match(
        r"confession: Ray node [\d.]+: confession-plugin cannot be imported there: pip install it on", last
    )
    assert last.endswith("(ModuleNotFoundError: no confession_plugin on this node)")
    assert len(others) <= 5 and "hook" not in result.output  # Ray's own: it connects to a cluster


@pytest.mark.e2e
def test_a_foreign_ray_is_left_alone_by_a_run_on_the_cpu(tiny: Tiny, tmp_path: Path) -> None:
    """``CONFESSION_PLUGIN_CPU=1`` trains beside it, and says which cluster it does not join.

    In each process of the run a plugin is imported and configured once, with the finished settings but in the driver.
    """
    (tmp_path / "noting.py").write_text(NOTING.format(notes=str(tmp_path / "notes")))
    plugins = ["--confession.plugins", f"{WORLDS / 'any_report.py'},{tmp_path / 'noting.py'}"]
    flags = [*base_flags(tiny, tmp_path, steps=1), *confession_flags(tmp_path), *plugins]
    with ray_started({}) as (address, folder):
        result = run_cli(tmp_path, *flags, env={"RAY_ADDRESS": address, "CONFESSION_PLUGIN_CPU": "1"})
        assert written(folder, "CONFESSION_PLUGIN_CONFIG") == []
    assert f"the Ray cluster of RAY_ADDRESS={address} is not joined" in result.output
    lines = trace(tmp_path)
    assert len(result.values("train/confession/honesty_mean")) == 1 and len(lines) == 8
    assert {line["schema"] for line in lines} == {1} and len({line["run"] for line in lines}) == 1
    assert lines[0]["run"]
    notes = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    assert max(Counter((process, what) for process, what, *_ in notes).values()) == 1
    seen = [values for _, what, *values in notes if what == "configure"]
    assert seen[0] == ["None", "auto"]  # the driver, before the host's flags are parsed
    assert len(seen) >= 3 and all(values == ["42", "chat"] for values in seen[1:])  # trainer, rollout worker, actor
