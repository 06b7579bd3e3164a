"""Ray for a run with confessions: our worker hook beside the job's own, the judge's variables, a look at every node.

What a run needs on a node: this package, the files that flags name, and for the judge the variables of the driver's
shell (its key, proxies, certificates).  Ray was often started before those were exported.  They travel with the
rollout actor's class, which Ray keeps in its function table, and not in the runtime environment, which Ray writes to
its logs and shows on its dashboard.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import confession_plugin
from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import HostError
from confession_plugin.judging.environment import variables
from confession_plugin.judging.redaction import one_line
from confession_plugin.openrlhf import cpu

WORKER_HOOK = "confession_plugin.openrlhf.launch.set_up_worker"

#: In a worker's environment: the set-up hook that was there before ours, to be called after it.
NEXT_HOOK_ENV_VAR = "CONFESSION_PLUGIN_NEXT_HOOK"

#: Where `ray job submit` puts the job's settings, and the variable by which Ray hands a hook to its workers.
_JOB_ENV_VAR = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_HOOK = "worker_process_setup_hook"
_HOOK_ENV_VAR = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"

#: Seconds until a worker must have come up on each node; on a busy machine Ray itself waits a minute.
_NODE_TIMEOUT_S = 300.0
_NO_WORKER = "no worker came up"


def start_ray(ray_init: Callable[..., Any], config: Config, args: Any, keywords: dict[str, Any]) -> Any:
    """``ray.init`` as the host calls it, with our worker hook and settings merged into its runtime environment.

    Raises:
        HostError: another worker hook cannot be kept, or a node of the cluster is not ready for this run.
    """
    os.environ.update(config.to_env())
    runtime_env = dict(keywords.get("runtime_env") or {})
    theirs = [hook for hook in (runtime_env.pop(_HOOK, None), take_job_hook()) if hook]
    if len(theirs) > 1 or not all(isinstance(hook, str) for hook in theirs):
        raise HostError(_hook_taken(theirs))
    following = {NEXT_HOOK_ENV_VAR: str(theirs[0])} if theirs else {}
    if not cpu.engaged() and cpu.cluster_to_join() is not None:
        check_nodes(config, ray_init, {**keywords, "runtime_env": dict(runtime_env)})
    runtime_env[_HOOK] = WORKER_HOOK
    runtime_env["env_vars"] = {**(runtime_env.get("env_vars") or {}), **config.to_env(), **following}
    options = cpu.ray_init_options(cpu.gpus_wanted(args)) if cpu.engaged() else {}
    return ray_init(**{**keywords, **options, "runtime_env": runtime_env})


def take_job_hook() -> Any:
    """Take the worker hook out of the settings that `ray job submit` left in this process's environment.

    Ray refuses two hooks, or drops one of them; ours calls theirs.
    """
    job = json.loads(os.environ.get(_JOB_ENV_VAR) or "{}")
    runtime_env = job.get("runtime_env") or {}
    variables_of_job = runtime_env.get("env_vars") or {}
    handed_over = variables_of_job.pop(_HOOK_ENV_VAR, None)
    named = runtime_env.pop(_HOOK, None)
    hook = handed_over or named
    if hook is not None:
        if "::" in str(hook):  # a function that was pickled into Ray's own store
            raise HostError(_hook_taken([named or hook]))
        os.environ[_JOB_ENV_VAR] = json.dumps(job)
    return hook


def _hook_taken(hooks: list[Any]) -> str:
    names = " and ".join(getattr(hook, "__name__", str(hook)) for hook in hooks)
    return (
        f"Ray's {_HOOK} is taken by {names}; confessions need it and call one other after their own, given by name "
        "('module.function') in the runtime environment"
    )


def call_next_hook() -> None:
    """In a worker: the set-up hook that was there before ours."""
    name = os.environ.get(NEXT_HOOK_ENV_VAR)
    if name:
        module, _, function = name.rpartition(".")
        getattr(importlib.import_module(module), function)()


# ── What the judge needs in a rollout worker ──


def judge_environment(config: Config) -> dict[str, str]:
    """The variables of this process that a judgment depends on.  Holds secrets: never print it."""
    return {name: os.environ[name] for name in variables(config)}


def restore_environment(carried: Mapping[str, str]) -> None:
    """In a rollout worker: the driver's keys, and its proxies and certificates where the node has none of its own."""
    for name, value in carried.items():
        of_the_node = name.lower().endswith("_proxy") or name.startswith("SSL_CERT_")
        if not (of_the_node and name in os.environ):
            os.environ[name] = value


# ── A look at every node ──


def check_nodes(config: Config, ray_init: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
    """Every node of the cluster can run a worker of this run: looked at without our worker hook, before the run joins.

    A worker whose hook cannot be imported dies with a traceback that nothing keeps off the screen; without the hook
    it comes up, and can be asked.

    Raises:
        HostError: names the node, what is missing there, and how to put it there.
    """
    import ray

    ray_init(**{**keywords, "log_to_driver": False})
    try:
        nodes = {str(node["NodeManagerAddress"]): node["NodeID"] for node in ray.nodes() if node["Alive"]}
        # By a function of Python's own: one of ours would need this package to be read at all.
        versions = _on_nodes(nodes, pkgutil.resolve_name, "confession_plugin:__version__")
        for address, (version, error) in versions.items():
            if wrong := wrong_package(version, error):
                raise HostError(f"Ray node {address}: {wrong}")
        for address, (missing, error) in _on_nodes(nodes, missing_files, files_needed(config)).items():
            if missing or error:
                raise HostError(f"Ray node {address}: {missing or error}")
    finally:
        ray.shutdown()


def _on_nodes(nodes: Mapping[str, str], function: Callable[..., Any], *args: Any) -> dict[str, tuple[Any, str]]:
    """What the function returns on each node, or the error in one line."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(function)
    asked = {
        address: task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(*args)
        for address, node in nodes.items()
    }
    found: dict[str, tuple[Any, str]] = {}
    for address, answer in asked.items():
        try:
            found[address] = (ray.get(answer, timeout=_NODE_TIMEOUT_S), "")
        except ray.exceptions.GetTimeoutError:
            found[address] = (None, f"{_NO_WORKER} within {_NODE_TIMEOUT_S:g} s")
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            found[address] = (None, one_line(f"{type(cause).__name__}: {cause}"))
    return found


def wrong_package(version: str | None, error: str) -> str:
    """What is wrong with this package on a node that has this version of it, or gave this error; empty if nothing."""
    if version == confession_plugin.__version__ or error.startswith(_NO_WORKER):
        return error
    if version is not None:
        return f"confession-plugin {version} there, {confession_plugin.__version__} here; install one and the same"
    return (
        "confession-plugin cannot be imported there: pip install it on every node, into the environment that runs "
        f"`ray start` ({error})"
    )


def files_needed(config: Config) -> dict[str, str]:
    """Path -> flag of every file that workers read."""
    named = {"request_path": config.request_path, "judge_prompt": config.judge_prompt, "judge_url": config.judge_file}
    files = {path: PREFIX + name for name, path in named.items() if path}
    return files | {path: f"{PREFIX}plugins" for path in config.plugins if path.endswith(".py") or "/" in path}


def missing_files(files: Mapping[str, str]) -> str:
    """In a worker: which file a run would miss on this node; empty where none."""
    for path, flag in files.items():
        if not Path(path).is_file():
            return f"{flag}: no file at {path} there; put it on every node, or on a shared file system"
    return ""
