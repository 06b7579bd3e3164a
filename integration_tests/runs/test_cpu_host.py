"""The host without a GPU: the stock command line, end to end, with the real Ray, vLLM and DeepSpeed.

Every other test of a whole run stands on this: if new weights did not reach the engine, or a stand-in changed what is
computed, tests of the confession channel would measure something else.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import RUN_ENV_VAR, Tiny, base_flags, end_processes, processes_of, run_cli, wait_until

from confession_plugin import cpu
from confession_plugin.errors import ConfigError
from confession_plugin.openrlhf.cpu import flash_attention
from confession_plugin.openrlhf.cpu.stand_ins import STAND_INS

#: What a team's own script says: made for GPUs, kept as it is.
GPU_FLAGS = [
    *(
        "--vllm.sync_backend",
        "nccl",
        "--vllm.enable_sleep",
        "--ds.enable_sleep",
        "--vllm.gpu_memory_utilization",
        "0.9",
    ),
    *("--ds.attn_implementation", "flash_attention_2", "--ds.adam_offload", "--actor.gradient_checkpointing_enable"),
]


# ── End to end ──


@pytest.mark.e2e
def test_a_gpu_command_line_trains_and_its_engine_follows(tiny: Tiny, tmp_path: Path) -> None:
    """The unchanged flags of a GPU run; entropy, which the host compiles; the engine samples from the new weights."""
    result = run_cli(
        tmp_path,
        *base_flags(tiny, tmp_path, steps=8),
        *GPU_FLAGS,
        *("--algo.advantage.is_correction_level", "token", "--actor.entropy_coef", "0.01", "--actor.adam.lr", "3e-3"),
    )
    announced = [line for line in result.output.splitlines() if line.startswith("[confession_plugin]")]
    assert len(announced) == 1, announced
    assert "running OpenRLHF on the CPU" in announced[0]
    assert "--vllm.sync_backend gloo" in announced[0]
    assert [step for step, _ in result.scalars["train/reward"]] == list(range(1, 9))
    assert all(entropy > 0 for entropy in result.values("train/entropy_loss"))
    # vllm_kl compares the engine's log-probs with the trainer's, kl the reference's with the trainer's.  An engine on
    # old weights would be the reference, and its vllm_kl would be kl.
    moved, apart = max(result.values("train/kl")), max(map(abs, result.values("train/vllm_kl")))
    print(f"the policy moved by {moved:.2g}; engine and trainer are {apart:.2g} apart")
    assert apart < moved / 10


@pytest.mark.e2e
def test_packing_critic_ema_and_two_of_each(tiny: Tiny, tmp_path: Path) -> None:
    """Packed rows in dynamic batches, a critic, an EMA model, two trainers and two engines, not colocated."""
    flags = base_flags(tiny, tmp_path, steps=4)
    flags.remove("--train.colocate_all")
    result = run_cli(
        tmp_path,
        *flags,
        *("--ds.packing_samples", "--train.dynamic_batch_enable", "--train.max_tokens_per_gpu", "256"),
        *("--algo.advantage.estimator", "gae", "--algo.advantage.is_correction_level", "token"),
        *("--train.enable_ema", "--actor.num_gpus_per_node", "2", "--ref.num_gpus_per_node", "1"),
        *("--vllm.num_engines", "2"),
    )
    assert len(result.values("train/reward")) == 4
    assert len(result.values("train/critic_loss")) == 4
    assert max(result.values("train/vllm_kl")) < 1e-3


@pytest.mark.e2e
def test_what_cannot_work_is_said_in_one_line(tiny: Tiny, tmp_path: Path) -> None:
    flags = [*base_flags(tiny, tmp_path), "--vllm.tensor_parallel_size", "2"]
    result = run_cli(tmp_path, *flags, expect=2, timeout=120)
    [line] = [line for line in result.output.splitlines() if "tensor_parallel_size" in line]
    assert "cannot work without a GPU" in line
    assert "Traceback" not in result.output


# ── The harness keeps its promise ──


def test_every_process_of_a_run_is_ended() -> None:
    """Also one that left for a session of its own, and one whose parent is gone."""
    run_id = f"test-{os.getpid()}"
    code = (
        "import os, subprocess, sys, time\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "subprocess.Popen(sleep, start_new_session=True)\n"
        "if os.fork() == 0:\n"
        "    subprocess.Popen(sleep); os._exit(0)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, RUN_ENV_VAR: run_id})
    wait_until(lambda: len(processes_of(run_id)) >= 3)
    end_processes(run_id)
    assert process.wait(60) < 0
    assert processes_of(run_id) == []


# ── When it is a CPU run ──


def engaged(**env: str) -> bool:
    """`cpu.engaged` in a new process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CONFESSION_"))}
    code = "from confession_plugin import cpu; print(cpu.engaged())"
    done = subprocess.run([sys.executable, "-c", code], env=clean | env, capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def test_engaged(tmp_path: Path) -> None:
    nowhere = {"RAY_TMPDIR": str(tmp_path)}
    has_gpu = importlib.import_module("torch").cuda.is_available()
    assert engaged(**nowhere) is not has_gpu
    assert engaged(**nowhere, CONFESSION_PLUGIN_CPU="1")
    assert not engaged(**nowhere, CONFESSION_PLUGIN_CPU="0")


def test_a_cluster_to_join_has_the_gpus(tmp_path: Path) -> None:
    """The head node that a driver runs on often has none."""
    nowhere = {"RAY_TMPDIR": str(tmp_path)}
    assert not engaged(**nowhere, RAY_ADDRESS="10.0.0.1:6379")
    assert not engaged(**nowhere, RAY_RAYLET_PID="1")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert not engaged(**nowhere)


# ── Flags ──


def test_flags_that_need_a_gpu_are_changed_and_others_kept() -> None:
    kept = ["--data.max_len", "96", "--logger.wandb.run_name=a=b", "--algo.kl.init_coef", "0"]
    assert cpu.adapt_argv([*kept, *GPU_FLAGS]) == [
        *kept,
        *("--vllm.sync_backend", "nccl", "--vllm.gpu_memory_utilization", "0.9"),
        *("--ds.attn_implementation", "flash_attention_2", "--actor.gradient_checkpointing_enable"),
        *("--vllm.sync_backend", "gloo", "--ds.attn_implementation", "sdpa", "--vllm.enforce_eager"),
    ]


def test_the_hosts_defaults_are_changed_too() -> None:
    added = ["--vllm.sync_backend", "gloo", "--ds.attn_implementation", "sdpa", "--vllm.enforce_eager"]
    assert cpu.adapt_argv([]) == added
    assert cpu.adapt_argv(added) == added
    assert "gloo" in cpu.adapt_argv(["--vllm.sync_backend=nccl"])
    assert "gloo" not in cpu.adapt_argv(["--vllm.sync_backend=gloo"])[2:]
    assert "eager" in cpu.adapt_argv(["--ds.attn_implementation", "eager"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--vllm.tensor_parallel_size", "2"],
        ["--vllm.tensor_parallel_size=2"],
        ["--ds.tensor_parallel_size", "4"],
        ["--ds.ring_attn_size", "2"],
        ["--ds.lora.rank", "4"],
        ["--ds.load_in_4bit"],
        ["--ds.load_in_4bit", "--data.max_len", "96"],
    ],
)
def test_impossible_flags(flags: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"{flags[0].partition('=')[0]} cannot work without a GPU: .* "):
        cpu.adapt_argv(flags)


def test_one_is_not_too_many() -> None:
    cpu.adapt_argv(["--vllm.tensor_parallel_size", "1", "--ds.ring_attn_size", "1", "--ds.tensor_parallel_size=1"])
    cpu.adapt_argv(["--ds.lora.rank", "0"])


# ── Stand-ins ──


def test_everything_replaced_exists_in_this_host() -> None:
    """In a process of its own, because it replaces them; all at once, so each also survives the others."""
    code = (
        "import functools, importlib\n"
        "from confession_plugin.openrlhf.cpu.stand_ins import STAND_INS, install\n"
        "install(); install()\n"
        "for s in STAND_INS:\n"
        "    now = functools.reduce(getattr, s.attribute.split('.'), importlib.import_module(s.module))\n"
        "    assert now.__module__.startswith('confession_plugin.openrlhf.cpu') or hasattr(now, '__wrapped__'), s\n"
        "    assert not hasattr(getattr(now, '__wrapped__', None), '__wrapped__'), f'{s} is wrapped twice'\n"
    )
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "VLLM_TARGET_DEVICE": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=300)


def test_each_stand_in_says_why() -> None:
    assert all(stand_in.why for stand_in in STAND_INS)
    assert len({(stand_in.module, stand_in.attribute) for stand_in in STAND_INS}) == len(STAND_INS)


def test_packing_and_unpacking() -> None:
    import torch

    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    x = torch.arange(24.0).reshape(2, 4, 3)
    packed, indices, cumulative, longest, lengths = flash_attention.unpad_input(x, mask)
    assert packed.tolist() == x[mask.bool()].tolist()
    assert cumulative.tolist() == [0, 3, 5] and cumulative.dtype == torch.int32
    assert longest == 3 and lengths.tolist() == [3, 2]
    assert flash_attention.pad_input(packed, indices, 2, 4).equal(x * mask.unsqueeze(-1))
    assert flash_attention.index_first_axis(x.flatten(0, 1), indices).equal(packed)


# ── when_imported ──


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_when_imported(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("value = 1\n")
    (tmp_path / "user.py").write_text("from late import value\n")
    code = """
import importlib.util, inspect, sys
from confession_plugin.patching import when_imported

calls = []
when_imported("late", lambda module: calls.append(1))
when_imported("late", lambda module: setattr(module, "value", 2))
assert importlib.util.find_spec("late").loader.get_filename("late").endswith("late.py") and not calls
assert "late" not in sys.modules
import user
assert user.value == 2 and calls == [1]
assert "value = 1" in inspect.getsource(user.sys.modules["late"] if hasattr(user, "sys") else sys.modules["late"])
when_imported("late", lambda module: calls.append(module.value))
assert calls == [1, 2]
"""
    run_python(code, tmp_path)


def test_when_imported_fails_loudly(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("")
    (tmp_path / "early.py").write_text(
        "from confession_plugin.patching import when_imported\nwhen_imported('early', print)\n"
    )
    code = """
from confession_plugin.patching import when_imported

when_imported("broken", lambda module: module.missing)
for name, error in (("broken", AttributeError), ("early", ImportError)):
    try:
        __import__(name)
    except error:
        continue
    raise SystemExit(f"{name}: no {error.__name__}")
"""
    run_python(code, tmp_path)
