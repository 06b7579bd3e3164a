"""The only list of what is replaced in OpenRLHF, and where.

How code reaches the host's processes (measured): plain and base classes and the globals of their modules are imported
by reference in every Ray worker, so replacing them there, in the worker set-up hook, takes effect; ``@ray.remote``
classes travel by value from the driver, so they are replaced in the driver before the command line runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module

from confession_plugin import patching
from confession_plugin.patching import MARK, Seam

_MAKER = "openrlhf.trainer.ppo_utils.experience_maker"
_SAMPLES = "openrlhf.trainer.ppo_utils.samples_generator"
_TRAINER = "openrlhf.trainer.ppo_trainer"
_ACTOR = "openrlhf.trainer.ray.ppo_actor"
_CRITIC = "openrlhf.trainer.ray.ppo_critic"
_BUFFER = "openrlhf.trainer.ppo_utils.replay_buffer"


def _seam(module: str, path: str, replacement: str, *needs: str) -> Seam:
    return Seam(module, path, f"confession_plugin.openrlhf.{replacement}", needs)


WORKER_SEAMS: tuple[Seam, ...] = (
    # which row of the dataset a prompt comes from
    _seam("openrlhf.datasets.prompts_dataset", "PromptDataset.__init__", "dataset:numbered_prompts", "dataset"),
    # which groups confess; one host sample with two spans
    _seam(_SAMPLES, "SamplesGenerator.generate_samples", "samples:generate_samples"),
    _seam(_SAMPLES, "SamplesGenerator.generate_eval_samples", "samples:generate_eval_samples"),
    _seam(
        _SAMPLES, "SamplesGenerator._generate_vllm", "samples:generate_vllm", "dataloader_iter", "dynamic_filtering"
    ),
    _seam(_SAMPLES, "SamplesGenerator._dispatch_prompts_to_vllm", "samples:dispatch_prompts", "prompts", "labels"),
    _seam(_SAMPLES, "SamplesGenerator._process_response_into_experience", "samples:process_response", "response"),
    _seam(_TRAINER, "BasePPOTrainer.init_checkpoint_states", "samples:restore_position"),
    _seam(_MAKER, "RemoteExperienceMaker.make_experience_batch", "samples:make_experience_batch", "rollout_samples"),
    # two channels: rewards, statistics, advantages
    _seam(_MAKER, "RemoteExperienceMaker.make_experience", "advantages:make_experience", "samples_list"),
    _seam(
        _MAKER,
        "RemoteExperienceMaker.compute_advantages_and_returns",
        "advantages:compute_advantages_and_returns",
        "experiences",
    ),
    _seam(_MAKER, "masked_mean", "experiences:masked_mean", "tensor", "mask"),
    _seam(_TRAINER, "BasePPOTrainer._compute_rollout_stats", "metrics:compute_rollout_stats", "experiences"),
    # two channels: losses and their denominators
    _seam(_ACTOR, "ActorPPOTrainer.__init__", "losses:trainer_init"),
    _seam(_ACTOR, "ActorPPOTrainer.ppo_train", "losses:ppo_train"),
    _seam(_ACTOR, "ActorPPOTrainer.training_step", "losses:training_step", "experience", "step", "loss_batch_info"),
    _seam(_ACTOR, "aggregate_loss", "losses:aggregate_loss", "loss", "loss_mask"),
    _seam(_ACTOR, "masked_mean", "experiences:masked_mean", "tensor", "mask"),
    _seam(
        _ACTOR,
        "iter_grad_accum_global_norm",
        "losses:iter_grad_accum_global_norm",
        "data_iter",
        "strategy",
        "accumulated_gradient",
        "mask_fn",
    ),
    _seam(_CRITIC, "CriticPPOTrainer.__init__", "losses:trainer_init"),
    _seam(_CRITIC, "CriticPPOTrainer.ppo_train", "losses:ppo_train"),
    _seam(_CRITIC, "CriticPPOTrainer.training_step", "losses:training_step", "experience", "step", "loss_batch_info"),
    _seam(_CRITIC, "masked_mean", "experiences:masked_mean", "tensor", "mask"),
    _seam(
        _CRITIC,
        "iter_grad_accum_global_norm",
        "losses:iter_grad_accum_global_norm",
        "data_iter",
        "strategy",
        "accumulated_gradient",
        "mask_fn",
    ),
    _seam(_BUFFER, "NaiveReplayBuffer.setup_dynamic_batch", "losses:setup_dynamic_batch"),
)

#: In place instead of all others when recorded answers are replayed without confessions.
REPLAY_SEAM = _seam(_SAMPLES, "SamplesGenerator.generate_samples", "recording:replayed_answers")

DRIVER_SEAMS: tuple[Seam, ...] = (
    _seam("openrlhf.trainer.ray", "create_vllm_engines", "rollout_actor:create_vllm_engines", "max_model_len"),
)

#: ``@ray.remote`` classes replaced in the driver by subclasses of themselves.
DRIVER_ACTORS: tuple[Seam, ...] = (
    _seam("openrlhf.trainer.ray.vllm_engine", "RolloutRayActor", "rollout_actor:confessing_actor"),
    _seam("openrlhf.trainer.ppo_trainer_async", "GenerateSamplesActor", "samples:resuming_generator"),
)


def install_worker() -> None:
    """Put the worker seams in place as their modules are imported.  Called in every Ray worker before anything else.

    This is Ray's ``worker_process_setup_hook``: it stays cheap, since Ray starts more workers than a run uses.
    """
    patching.put_in_when_imported(WORKER_SEAMS)


def install_replay() -> None:
    """Put the one seam of a replay without confessions in place."""
    patching.put_in_when_imported([REPLAY_SEAM])


def install_driver() -> None:
    """Put the driver seams in place.  Called once, before the host's command line is imported."""
    for seam in DRIVER_SEAMS:
        patching.put_in(seam, import_module(seam.module))
    for seam in DRIVER_ACTORS:
        owner, name, actor = patching.find(seam.module, seam.path)
        subclass = patching.replacement_of(seam)(actor)
        setattr(subclass, MARK, seam.path)
        setattr(owner, name, subclass)


def check_host() -> None:
    """Every seam exists, with the parameters it relies on.

    Raises:
        HostError: the first one that does not.
    """
    patching.check_seams((*WORKER_SEAMS, *DRIVER_SEAMS, *DRIVER_ACTORS))


def in_this_process() -> AbstractContextManager[None]:
    """The worker seams in place in this process, and out again: for the seal check and for tests."""
    return patching.in_this_process(WORKER_SEAMS)


def replaced() -> list[str]:
    """Seams in place in this process; empty in a stock run."""
    return patching.replaced((*WORKER_SEAMS, *DRIVER_SEAMS, *DRIVER_ACTORS))
