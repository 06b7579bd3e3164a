"""The host's classes in this process: flags for them, and the stand-ins they need without a GPU.

Import this before anything of OpenRLHF.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling the host's entropy takes longer than all these tests
if not torch.cuda.is_available():
    from confession_plugin.openrlhf.cpu.prepare import ENVIRONMENT
    from confession_plugin.openrlhf.cpu.stand_ins import install as install_cpu_stand_ins

    for _name, _value in ENVIRONMENT.items():
        os.environ.setdefault(_name, _value)
    install_cpu_stand_ins()

from confession_plugin import patching
from confession_plugin.openrlhf import host_flags

#: Every advantage estimator of the host.
ESTIMATORS = ("gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce")

BASE = [
    *("--actor.model_name_or_path", "tiny", "--reward.remote_url", "reward.py", "--data.max_len", "64"),
    *("--rollout.batch_size", "4", "--rollout.n_samples_per_prompt", "4", "--rollout.micro_batch_size", "4"),
    *("--train.batch_size", "8", "--train.micro_batch_size", "4", "--vllm.num_engines", "1"),
    *("--actor.num_gpus_per_node", "1", "--ref.num_gpus_per_node", "1", "--ds.attn_implementation", "sdpa"),
]


def host_args(*flags: str) -> Any:
    """The host's parsed flags of a small run; later flags win."""
    return host_flags.parse([*BASE, *flags])


@contextmanager
def fresh_seams() -> Iterator[None]:
    """Seams resolve their replacement once; one that a test changes must be looked up again, and forgotten after."""
    patching.replacement_of.cache_clear()
    try:
        yield
    finally:
        patching.replacement_of.cache_clear()
