"""``python3 -m confession_plugin.seal`` as a user types it: any command line, on a machine without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EIGHT_GPUS = [
    *("--actor.model_name_or_path", "some/model", "--reward.remote_url", "http://rewards:5000/get_reward"),
    *("--actor.num_gpus_per_node", "8", "--ref.num_gpus_per_node", "8", "--vllm.num_engines", "1"),
    *("--vllm.tensor_parallel_size", "8", "--vllm.sync_backend", "nccl", "--vllm.enable_sleep", "--ds.enable_sleep"),
    *("--train.colocate_all", "--ds.zero_stage", "3", "--ds.adam_offload", "--ds.packing_samples"),
    *("--ds.ring_attn_size", "2", "--ds.ring_attn_head_stride", "2"),
    *("--ds.attn_implementation", "flash_attention_2", "--actor.gradient_checkpointing_enable"),
    *("--rollout.n_samples_per_prompt", "8", "--algo.advantage.estimator", "group_norm"),
    *("--confession.judge_url", "http://judge:8000/v1", "--confession.judge_model", "some/judge"),
]

WALKS_THE_STACK = """
import sys
from confession_plugin import hookimpl
from confession_plugin.channels import estimate_scored

@hookimpl
def confession_advantages(honesty):
    frame = sys._getframe()
    while "of_answers" not in frame.f_locals:
        frame = frame.f_back
    for value in frame.f_locals["of_answers"].advantages:
        value.add_(honesty.rewards.mean())
    return estimate_scored(honesty)
"""


def check(*flags: str) -> tuple[int, str, str]:
    """Exit code, last line of stdout, last line of stderr."""
    command = [sys.executable, "-m", "confession_plugin.seal", *EIGHT_GPUS, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "Traceback" not in done.stderr, done.stderr
    out, err = ([*text.strip().splitlines(), ""] for text in (done.stdout, done.stderr))
    return done.returncode, out[max(len(out) - 2, 0)], err[max(len(err) - 2, 0)]


def test_eight_gpus_are_checked_without_one() -> None:
    code, said, _ = check()
    assert code == 0
    assert said.startswith("seal holds: group_norm, ppo/token-mean")
    assert "not exercised: ring attention, several data-parallel ranks, packed rows" in said


def test_a_violated_seal_is_exit_code_1(tmp_path: Path) -> None:
    plugin = tmp_path / "walks.py"
    plugin.write_text(WALKS_THE_STACK)
    code, said, _ = check("--confession.plugins", str(plugin))
    assert code == 1
    assert said.startswith("seal VIOLATED: group_norm")
    assert "honesty -> answer advantages" in said and "compute_advantages_and_returns" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rollout.temperature", "0"], "the host's own numbers are not finite under these flags"),
        (["--rollout.n_samples_per_prompt", "1"], "group_norm requires n_samples_per_prompt > 1"),
        (["--confession.coef", "inf"], "--confession.coef"),
    ],
)
def test_flags_that_cannot_work_are_exit_code_2_and_one_line(flags: list[str], message: str) -> None:
    code, said, error = check(*flags)
    assert code == 2
    assert not said.startswith("seal")
    assert error.startswith("confession: ") and message in error
