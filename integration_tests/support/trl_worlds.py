"""TRL's trainer in this process, on a tiny model: settings, runs with and without confessions, what came of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from confession_plugin.config import Config
from confession_plugin.lattices import REWARDS
from confession_plugin.plugins import configured
from confession_plugin.startup import Run
from confession_plugin.trl.check import simulator
from confession_plugin.trl.check.simulator import Pass, World

#: Every loss type of the host.
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


def grpo_config(folder: Path | str, **changes: Any) -> Any:
    """A small run's GRPOConfig, with two groups a generation unless the changes say otherwise."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    return GRPOConfig(**{**settings, **changes})


def settings(**changes: Any) -> Config:
    """Settings of a small run whose plugin decides everything."""
    small = {"max_new_tokens": 5, "max_request_tokens": 64, "request_format": "plain", "seed": 0}
    return Config(**{**small, "max_unscored": 1.0, "enable": True, **changes})


def run_with(config: Config, honesty: str = "ninths", *, everyone: bool = False, plugins: Any = ()) -> Run:
    """Plugins that ask (half of the groups, or all) and reward from a lattice; `plugins` come before them."""
    manager = simulator.plugins_for(Run(config, configured(config), ()), config, REWARDS[honesty], everyone=everyone)
    for plugin in plugins:
        manager.register(plugin)
    return Run(config, manager, ())


@contextmanager
def world_of(folder: Path, config: Config | None = None) -> Iterator[World]:
    """A tiny world in this folder; this process's random state, settings and output stay what they are."""
    with simulator.in_a_world(config or settings()) as (world, _):
        yield world


def stock_pass(world: World, args: Any, task: str = "ninths") -> Pass:
    return simulator.one_pass(world, args, REWARDS[task])


def our_pass(world: World, args: Any, run: Run, task: str = "ninths") -> Pass:
    return simulator.one_pass(world, args, REWARDS[task], run)
