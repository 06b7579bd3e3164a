"""Single passes through the host for the seal's tests: with confessions, or stock on the answers alone.

Everything here runs on the host's own classes (see `confession_plugin.openrlhf.check.simulator`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from in_process import fresh_seams, host_args

from confession_plugin import session
from confession_plugin.config import Config
from confession_plugin.openrlhf import seams
from confession_plugin.openrlhf.check import passes, simulator
from confession_plugin.openrlhf.check.passes import Pass
from confession_plugin.openrlhf.check.random_rollouts import RandomRollouts, responses
from confession_plugin.plugins import PluginManager, configured

__all__ = ["fresh_seams", "host_args"]  # for the tests, beside what is defined here

CONFIG = Config(enable=True)
COEF_0 = Config(enable=True, coef=0.0)
EXCLUSIVE = Config(enable=True, answer_training="exclusive")

ESTIMATORS = ("gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce")
REWARD_MODEL = ["--reward.remote_url", "", "--reward.model_name_or_path", "tiny"]


def estimator(name: str) -> list[str]:
    return ["--algo.advantage.estimator", name]


def run(flags: list[str], config: Config = CONFIG, plugins: PluginManager | None = None, **changes: Any) -> Pass:
    """A pass with confessions; `changes` are fields of `RandomRollouts`, or `honesty` and `answer_reward`."""
    rollouts = {key: changes.pop(key) for key in list(changes) if key in RandomRollouts.__dataclass_fields__}
    rollouts.setdefault("samples_per_answer", config.samples_per_answer)
    with in_place(config, plugins):
        return passes.one_pass(host_args(*flags), responses(RandomRollouts(**rollouts), **changes))


def stock(flags: list[str], **changes: Any) -> Pass:
    """A pass of the unpatched host on the answers alone."""
    with passes.quiet(), simulator.one_process():
        return passes.one_pass(host_args(*flags), responses(RandomRollouts(**changes), confess=False))


@contextmanager
def in_place(config: Config = CONFIG, plugins: PluginManager | None = None) -> Iterator[None]:
    """The seams in this process, with these settings and plugins."""
    used = session.using(config, plugins or configured(config))
    with passes.quiet(), simulator.one_process(), used, seams.in_this_process():
        yield


def with_plugin(plugin: object) -> PluginManager:
    """The built-in plugins and one more, asked first."""
    manager = configured(CONFIG)
    manager.register(plugin, "leak")
    return manager
