"""Data-parallel ranks and accumulation: 1 rank x 4 micro-batches and 2 ranks x 2 take the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from in_process import host_args

from confession_plugin import session
from confession_plugin.config import Config
from confession_plugin.openrlhf import seams
from confession_plugin.openrlhf.check import compare, seal, simulator
from confession_plugin.openrlhf.check.random_rollouts import RandomRollouts, responses
from confession_plugin.plugins import configured

SETTINGS = {
    "token mean": ["--algo.advantage.estimator", "group_norm", "--algo.kl.use_loss", "--algo.kl.estimator", "k3"],
    "sequence mean": ["--algo.advantage.estimator", "rloo", "--actor.loss_agg_mode", "seq-mean-token-mean"],
    "gspo": ["--algo.advantage.estimator", "group_norm", "--actor.policy_loss_type", "gspo"],
    "critic": ["--algo.advantage.estimator", "gae"],
}
MODES = {
    "dual": Config(enable=True),
    "exclusive": Config(enable=True, answer_training="exclusive"),
    "three confessions an answer": Config(enable=True, samples_per_answer=3),
}


def one_step(flags: list[str], config: Config, rank: int, ranks: int) -> simulator.Trained:
    """One optimizer step on all 16 samples, of which this rank holds its share."""
    args = host_args(*flags, "--train.batch_size", "16", "--train.micro_batch_size", "4")
    rollouts = RandomRollouts(
        unscored=(2, 9), asked=(True, False, True, False), samples_per_answer=config.samples_per_answer
    )
    with seal.quiet(), simulator.one_process(), session.using(config, configured(config)), seams.in_this_process():
        bench = simulator.Simulator(args, world_size=ranks)
        experiences = bench.experiences(bench.samples(responses(rollouts)))  # 4 of 4 samples each
        share = len(experiences) // ranks
        return bench.train(experiences[rank * share : (rank + 1) * share])


def worker(rank: int, ranks: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    found = {
        (name, mode): one_step(flags, config, rank, ranks)
        for name, flags in SETTINGS.items()
        for mode, config in MODES.items()
    }
    if rank == 0:
        torch.save({key: (trained.actor, trained.critic) for key, trained in found.items()}, results)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = Path(tmp_path_factory.mktemp("ranks"))
    mp.spawn(worker, (2, str(folder / "store"), str(folder / "results")), nprocs=2)
    return torch.load(folder / "results")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_and_accumulation_take_the_same_step(name: str, mode: str, two_ranks: Any) -> None:
    alone = one_step(SETTINGS[name], MODES[mode], 0, 1)
    actor, critic = two_ranks[name, mode]
    assert len(alone.actor) == len(actor) == 1
    assert compare.largest_change(alone.actor, actor) < 1e-5
    assert compare.largest_change(alone.critic, critic) < 1e-5
