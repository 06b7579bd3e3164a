"""The only list of what is replaced in OpenRLHF, and where.

How code reaches the host's processes (measured): plain and base classes and the globals of their modules are imported
by reference in every Ray worker, so replacing them there, in the worker set-up hook, takes effect; ``@ray.remote``
classes travel by value from the driver, so they are replaced in the driver before the command line runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from confession_plugin.lazy import when_imported
from confession_plugin.openrlhf import host

#: Set on everything we put in place of something of the host's.
MARK = "__confession_seam__"

_HERE = "confession_plugin.openrlhf"


@dataclass(frozen=True)
class Seam:
    """One replaced attribute of the host: ``replacement(host_function, *args, **kwargs)``."""

    module: str
    path: str
    replacement: str
    """``module:function`` of ours, imported only where it is used."""
    needs: tuple[str, ...] = ()
    """Parameters of the host's function that the replacement relies on."""


_MAKER = "openrlhf.trainer.ppo_utils.experience_maker"
_SAMPLES = "openrlhf.trainer.ppo_utils.samples_generator"
_TRAINER = "openrlhf.trainer.ppo_trainer"
_ACTOR = "openrlhf.trainer.ray.ppo_actor"
_CRITIC = "openrlhf.trainer.ray.ppo_critic"
_BUFFER = "openrlhf.trainer.ppo_utils.replay_buffer"

WORKER_SEAMS: tuple[Seam, ...] = (
    # which groups confess; one host sample with two spans
    Seam(_SAMPLES, "SamplesGenerator.generate_samples", "samples:generate_samples"),
    Seam(_SAMPLES, "SamplesGenerator.generate_eval_samples", "samples:generate_eval_samples"),
    Seam(_SAMPLES, "SamplesGenerator._dispatch_prompts_to_vllm", "samples:dispatch_prompts", ("prompts", "labels")),
    Seam(_SAMPLES, "SamplesGenerator._process_response_into_experience", "samples:process_response", ("response",)),
    Seam(_TRAINER, "BasePPOTrainer.init_checkpoint_states", "samples:restore_position"),
    # two channels: rewards, statistics, advantages
    Seam(_MAKER, "RemoteExperienceMaker.make_experience", "advantages:make_experience", ("samples_list",)),
    Seam(
        _MAKER,
        "RemoteExperienceMaker.compute_advantages_and_returns",
        "advantages:compute_advantages_and_returns",
        ("experiences",),
    ),
    Seam(_MAKER, "masked_mean", "experiences:masked_mean", ("tensor", "mask")),
    Seam(_TRAINER, "BasePPOTrainer._compute_rollout_stats", "metrics:compute_rollout_stats", ("experiences",)),
    # two channels: losses and their denominators
    Seam(_ACTOR, "ActorPPOTrainer.__init__", "losses:trainer_init"),
    Seam(_ACTOR, "ActorPPOTrainer.ppo_train", "losses:ppo_train"),
    Seam(_ACTOR, "ActorPPOTrainer.training_step", "losses:training_step", ("experience", "step", "loss_batch_info")),
    Seam(_ACTOR, "aggregate_loss", "losses:aggregate_loss", ("loss", "loss_mask")),
    Seam(_ACTOR, "masked_mean", "experiences:masked_mean", ("tensor", "mask")),
    Seam(
        _ACTOR,
        "iter_grad_accum_global_norm",
        "losses:iter_grad_accum_global_norm",
        ("data_iter", "strategy", "accumulated_gradient", "mask_fn"),
    ),
    Seam(_CRITIC, "CriticPPOTrainer.__init__", "losses:trainer_init"),
    Seam(_CRITIC, "CriticPPOTrainer.ppo_train", "losses:ppo_train"),
    Seam(_CRITIC, "CriticPPOTrainer.training_step", "losses:training_step", ("experience", "step", "loss_batch_info")),
    Seam(_CRITIC, "masked_mean", "experiences:masked_mean", ("tensor", "mask")),
    Seam(
        _CRITIC,
        "iter_grad_accum_global_norm",
        "losses:iter_grad_accum_global_norm",
        ("data_iter", "strategy", "accumulated_gradient", "mask_fn"),
    ),
    Seam(_BUFFER, "NaiveReplayBuffer.setup_dynamic_batch", "losses:setup_dynamic_batch"),
)

#: In place instead of all others when recorded answers are replayed without confessions.
REPLAY_SEAM = Seam(_SAMPLES, "SamplesGenerator.generate_samples", "recording:replayed_answers")

DRIVER_SEAMS: tuple[Seam, ...] = (
    Seam("openrlhf.trainer.ray", "create_vllm_engines", "rollout:create_vllm_engines", ("max_model_len",)),
)

#: ``@ray.remote`` classes replaced in the driver by subclasses of themselves.
DRIVER_ACTORS: tuple[Seam, ...] = (
    Seam("openrlhf.trainer.ray.vllm_engine", "RolloutRayActor", "rollout:confessing_actor"),
    Seam("openrlhf.trainer.ppo_trainer_async", "GenerateSamplesActor", "samples:resuming_generator"),
)


def install_worker() -> None:
    """Put the worker seams in place as their modules are imported.  Called in every Ray worker before anything else.

    This is Ray's ``worker_process_setup_hook``: it stays cheap, since Ray starts more workers than a run uses.
    """
    for seam in WORKER_SEAMS:
        when_imported(seam.module, functools.partial(_wrap, seam))


def install_replay() -> None:
    """Put the one seam of a replay without confessions in place."""
    when_imported(REPLAY_SEAM.module, functools.partial(_wrap, REPLAY_SEAM))


def install_driver() -> None:
    """Put the driver seams in place.  Called once, before the host's command line is imported."""
    for seam in DRIVER_SEAMS:
        _wrap(seam, import_module(seam.module))
    for seam in DRIVER_ACTORS:
        owner, name, actor = host.find(seam.module, seam.path)
        subclass = _replacement(seam)(actor)
        setattr(subclass, MARK, seam.path)
        setattr(owner, name, subclass)


def check_host() -> None:
    """Every seam exists, with the parameters it relies on.

    Raises:
        HostError: the first one that does not.
    """
    for seam in (*WORKER_SEAMS, *DRIVER_SEAMS):
        host.check_parameters(seam.module, seam.path, seam.needs)
    for seam in DRIVER_ACTORS:
        host.find(seam.module, seam.path)


def replaced() -> list[str]:
    """Seams in place in this process; empty in a stock run."""
    import sys

    found = []
    for seam in (*WORKER_SEAMS, *DRIVER_SEAMS, *DRIVER_ACTORS):
        if seam.module in sys.modules and hasattr(host.find(seam.module, seam.path)[2], MARK):
            found.append(f"{seam.module}:{seam.path}")
    return found


def _wrap(seam: Seam, module: ModuleType) -> None:
    owner, name, original = host.find(module.__name__, seam.path)
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return _replacement(seam)(original, *args, **kwargs)

    setattr(wrapper, MARK, f"{seam.module}:{seam.path}")
    setattr(owner, name, wrapper)


@functools.cache
def _replacement(seam: Seam) -> Callable[..., Any]:
    module, name = seam.replacement.split(":")
    function: Callable[..., Any] = getattr(import_module(f"{_HERE}.{module}"), name)
    return function


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """The worker seams in place in this process, and out again: for the seal check and for tests.

    Nested uses keep the outer one's seams.
    """
    put_in: list[tuple[Any, str, Any]] = []
    for seam in WORKER_SEAMS:
        owner, name, original = host.find(seam.module, seam.path)
        if not hasattr(original, MARK):
            _wrap(seam, import_module(seam.module))
            put_in.append((owner, name, original))
    try:
        yield
    finally:
        for owner, name, original in put_in:
            setattr(owner, name, original)
