"""Ray for a run: whose worker hook runs, what reaches a node, and what is said where something is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from confession_plugin.config import ENV_VAR, Config
from confession_plugin.errors import HostError
from confession_plugin.openrlhf import cluster, cpu

ARGS = SimpleNamespace()
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Ray in sight, and a decision not to run on the CPU: ``ray.init`` is called as on a GPU machine."""
    for name in (JOB, "RAY_ADDRESS", ENV_VAR):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("CONFESSION_PLUGIN_CPU", "0")


def runtime_env_of(config: Config, **keywords: Any) -> dict[str, Any]:
    """What ``ray.init`` is called with."""
    taken: dict[str, Any] = {}
    cluster.start_ray(lambda **given: taken.update(given), config, ARGS, keywords)
    found: dict[str, Any] = taken["runtime_env"]
    return found


# ── The worker hook ──


def test_our_hook_and_settings_join_the_hosts_runtime_env() -> None:
    config = Config(enable=True, coef=0.5)
    found = runtime_env_of(config, runtime_env={"env_vars": {"NCCL_DEBUG": "WARN"}, "pip": ["x"]})
    assert found["worker_process_setup_hook"] == cluster.WORKER_HOOK and found["pip"] == ["x"]
    assert found["env_vars"] == {"NCCL_DEBUG": "WARN", **config.to_env()}


def test_the_jobs_own_hook_is_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job submit` leaves it in the environment; Ray would refuse two."""
    job = {
        "runtime_env": {"worker_process_setup_hook": "their.hook", "env_vars": {"A": "1"}, "working_dir": "."},
        "metadata": {"job": "7"},
    }
    monkeypatch.setenv(JOB, json.dumps(job))
    found = runtime_env_of(Config(enable=True))
    assert found["worker_process_setup_hook"] == cluster.WORKER_HOOK
    assert found["env_vars"][cluster.NEXT_HOOK_ENV_VAR] == "their.hook"
    assert json.loads(os.environ[JOB]) == {
        "runtime_env": {"env_vars": {"A": "1"}, "working_dir": "."},
        "metadata": {"job": "7"},
    }


def test_a_hook_that_ray_has_handed_over_already_is_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    handed = {"env_vars": {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "their.hook"}}
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {**handed, "worker_process_setup_hook": "their.hook"}}))
    assert runtime_env_of(Config())["env_vars"][cluster.NEXT_HOOK_ENV_VAR] == "their.hook"
    assert json.loads(os.environ[JOB]) == {"runtime_env": {"env_vars": {}}}


def test_the_hosts_own_hook_is_chained() -> None:
    found = runtime_env_of(Config(), runtime_env={"worker_process_setup_hook": "their.hook"})
    assert found["env_vars"][cluster.NEXT_HOOK_ENV_VAR] == "their.hook"


def test_a_hook_that_cannot_be_kept_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match=r"worker_process_setup_hook is taken by print; .* given by name"):
        runtime_env_of(Config(), runtime_env={"worker_process_setup_hook": print})
    pickled = {"env_vars": {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "ray_runtime_env_func::AbC="}}
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {**pickled, "worker_process_setup_hook": "mark"}}))
    with pytest.raises(HostError, match=r"is taken by mark; confessions need it and call one other after their own"):
        runtime_env_of(Config())
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"worker_process_setup_hook": "a.b"}}))
    with pytest.raises(HostError, match=r"is taken by c\.d and a\.b"):
        runtime_env_of(Config(), runtime_env={"worker_process_setup_hook": "c.d"})


def test_the_next_hook_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_hooks.py").write_text("called = []\ndef hook():\n    called.append(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    cluster.call_next_hook()
    assert "their_hooks" not in sys.modules
    monkeypatch.setenv(cluster.NEXT_HOOK_ENV_VAR, "their_hooks.hook")
    cluster.call_next_hook()
    assert sys.modules["their_hooks"].called == [1]


# ── The judge's variables ──


def test_the_judges_variables_are_carried_and_not_in_the_runtime_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:password@proxy:3128")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ca.pem")
    config = Config(enable=True, judge_url="https://judge/v1", judge_model="m", judge_key_env="MY_KEY")
    carried = cluster.judge_environment(config)
    assert carried["MY_KEY"] == "sk-secret" and carried["HTTPS_PROXY"].startswith("http://me:")
    assert carried["SSL_CERT_FILE"] == "/etc/ca.pem" and "PATH" not in carried
    shown = json.dumps(runtime_env_of(config))
    assert "sk-secret" not in shown and "password" not in shown


def test_a_node_keeps_its_own_proxies_and_takes_our_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "an old one")
    monkeypatch.setenv("https_proxy", "http://the-nodes:1")
    for name in ("NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    cluster.restore_environment(
        {"MY_KEY": "new", "https_proxy": "http://ours:1", "NO_PROXY": "judge", "SSL_CERT_FILE": "/ca.pem"}
    )
    assert (os.environ["MY_KEY"], os.environ["https_proxy"]) == ("new", "http://the-nodes:1")
    assert (os.environ["NO_PROXY"], os.environ["SSL_CERT_FILE"]) == ("judge", "/ca.pem")


# ── What a node must have ──


def test_a_package_that_is_missing_or_another_on_a_node() -> None:
    import confession_plugin

    version = confession_plugin.__version__
    assert cluster.wrong_package(version, "") == ""
    assert cluster.wrong_package("9.9", "").startswith(f"confession-plugin 9.9 there, {version} here; install one")
    assert cluster.wrong_package(None, "no worker came up within 300 s") == "no worker came up within 300 s"
    missing = cluster.wrong_package(None, "ModuleNotFoundError: No module named 'confession_plugin'")
    assert missing.startswith("confession-plugin cannot be imported there: pip install it on every node")


def test_files_that_are_missing_on_a_node(tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    config = Config(judge_url=str(judge), plugins=("a.module", str(tmp_path / "p.py")), request_path="/no/request.txt")
    files = cluster.files_needed(config)
    assert files == {
        str(judge): "--confession.judge_url",
        str(tmp_path / "p.py"): "--confession.plugins",
        "/no/request.txt": "--confession.request_path",
    }
    assert cluster.missing_files({}) == ""
    lost = {str(judge): "--confession.judge_url"}
    assert f"--confession.judge_url: no file at {judge} there" in cluster.missing_files(lost)
    judge.write_text("")
    assert cluster.missing_files(lost) == ""


# ── A machine without a GPU, and a cluster in sight ──


SIGHT = """
import os, sys
from confession_plugin.errors import ConfigError
from confession_plugin.openrlhf import cpu
for settings in sys.argv[1:]:
    os.environ.update(dict(pair.split("=") for pair in settings.split()))
    try:
        print(cpu.check_cluster())
    except ConfigError as error:
        print(error)
"""


def seen(*settings: str) -> list[str]:
    """What `check_cluster` says under these environments, one after the other in one new process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CONFESSION_"))}
    command = [sys.executable, "-c", SIGHT, *settings]
    return subprocess.run(command, env=clean, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_cpu_run_says_which_cluster_it_does_not_join(tmp_path: Path) -> None:
    code = "from confession_plugin.openrlhf import cpu; print(cpu.engaged()); cpu.prepare_driver([])"
    env = {**os.environ, "CONFESSION_PLUGIN_CPU": "1", "RAY_ADDRESS": "10.0.0.1:6379"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "True" and second.startswith(
        "[confession_plugin] CONFESSION_PLUGIN_CPU=1: running OpenRLHF on the CPU; the Ray cluster of "
        "RAY_ADDRESS=10.0.0.1:6379 is not joined; flags changed: "
    )


def test_a_cluster_in_sight_of_a_cpu_machine_is_one_line(tmp_path: Path) -> None:
    if importlib.util.find_spec("torch") and not cpu.no_gpu_here():
        pytest.skip("a machine with a GPU joins the cluster")
    (tmp_path / "some" / "ray").mkdir(parents=True)
    (tmp_path / "some" / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    none, address, local, start, no, yes = seen(
        f"RAY_TMPDIR={tmp_path}",
        "RAY_ADDRESS=10.0.0.1:6379",
        "RAY_ADDRESS=local",
        f"RAY_ADDRESS= RAY_TMPDIR={tmp_path / 'some'}",
        "CONFESSION_PLUGIN_CPU=0",
        "CONFESSION_PLUGIN_CPU=1",
    )
    assert none == local == no == yes == "None"
    assert address.startswith("the Ray cluster of RAY_ADDRESS=10.0.0.1:6379 would be joined")
    assert start.startswith("the Ray cluster of `ray start` (") and "CONFESSION_PLUGIN_CPU=1" in start
