"""What happens between our flags and the host's command line: checks, then Ray with our worker hook, then training."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from confession_plugin import session
from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfessionError, ConfigError, HostError
from confession_plugin.openrlhf import cpu, host_flags, recording, seams, version
from confession_plugin.startup import Run

if TYPE_CHECKING:
    from confession_plugin.openrlhf.check.seal import SealReport

WORKER_HOOK = "confession_plugin.openrlhf.launch.set_up_worker"


def check_settings(config: Config) -> None:
    """What our own flags say about this host, before anything of it is imported.

    Raises:
        ConfigError: nothing to replay.
        HostError: no host, or an untested one.
    """
    if config.replay_rollouts is not None:
        recording.check(config.replay_rollouts)
    if config.enable:
        version.check_version(config)


def train(run: Run) -> None:
    """Run the stock command line; with confessions if the settings enable them.

    Without ``enable``, and with a CUDA device, nothing at all is replaced: this is ``python -m openrlhf.cli...``.
    """
    config, argv = run.config, list(run.host_argv)
    if cpu.engaged():
        argv = cpu.prepare_driver(argv)
    if config.enable:
        os.environ.update(config.to_env())
        seams.install_driver()
    watched = config.enable or cpu.engaged() or config.replay_rollouts is not None
    try:
        host_flags.run(argv, _start if watched else None)
    except ConfessionError:
        # As long as Ray is up it prints its workers' tracebacks; the one line that says why has to come last.
        import ray

        ray.shutdown()
        raise


def check_seal_alone(run: Run) -> SealReport:
    """The seal check on a run's flags, on any machine: nothing is started, so nothing needs the run's GPUs."""
    version.check_version(run.config)
    if cpu.engaged():
        cpu.prepare_process()
    args = host_flags.parse(run.host_argv)
    seams.check_host()
    from confession_plugin.openrlhf.check import seal

    return seal.check_seal(args, run.config, run.plugins)


def set_up_worker() -> None:
    """Ray's ``worker_process_setup_hook``: the CPU stand-ins where they are needed, then the seams."""
    if cpu.engaged():
        cpu.prepare_worker()
    config = Config.from_env()
    if config.enable:
        seams.install_worker()
    elif config.replay_rollouts is not None:
        seams.install_replay()


def _start(args: Any, ray_init: Callable[..., Any], keywords: dict[str, Any]) -> Any:
    """In place of the host's ``ray.init``: finish and check the settings, then start Ray."""
    config = finish_config(session.config(), args)
    if config.enable:
        session.begin(config, session.plugins())
        check_run(config, args)
    return start_ray(ray_init, config, args, keywords)


def finish_config(config: Config, args: Any) -> Config:
    """Settings that follow the host's flags."""
    changes: dict[str, Any] = {}
    if config.seed is None:
        changes["seed"] = args.train.seed
    if config.request_format == "auto":
        changes["request_format"] = "chat" if args.data.apply_chat_template else "plain"
    return config.model_copy(update=changes)


def start_ray(ray_init: Callable[..., Any], config: Config, args: Any, keywords: dict[str, Any]) -> Any:
    """``ray.init`` as the host calls it, with our worker hook and settings merged into its runtime environment."""
    os.environ.update(config.to_env())
    runtime_env = dict(keywords.get("runtime_env") or {})
    if "worker_process_setup_hook" in runtime_env:
        raise HostError("Ray's worker_process_setup_hook is taken by somebody else; confessions need it")
    runtime_env["worker_process_setup_hook"] = WORKER_HOOK
    runtime_env["env_vars"] = {**(runtime_env.get("env_vars") or {}), **config.to_env()}
    options = cpu.ray_init_options(cpu.gpus_wanted(args)) if cpu.engaged() else {}
    return ray_init(**{**keywords, **options, "runtime_env": runtime_env})


def check_run(config: Config, args: Any) -> None:
    """What only the host's own flags can tell.

    Raises:
        ConfigError: a combination that cannot work.
        HostError: a seam is missing, or the seal does not hold.
    """
    seams.check_host()
    if getattr(args.data, "max_images_per_prompt", 0) > 0:
        raise ConfigError(
            "--data.max_images_per_prompt: confessions about images are not supported; train this run without "
            f"{PREFIX}enable"
        )
    if not args.vllm.num_engines:
        raise ConfigError(f"--vllm.num_engines: {PREFIX}enable needs at least one vLLM engine; give 1 or more")
    _check_context(config, args)
    from confession_plugin.openrlhf.check.seal import require_seal

    print(f"[confession_plugin] {require_seal(args, config, session.plugins())}", flush=True)


def _check_context(config: Config, args: Any) -> None:
    """Prompt, answer, request and confession must fit the model's positions."""
    from transformers import AutoConfig

    try:
        model = AutoConfig.from_pretrained(args.actor.model_name_or_path, trust_remote_code=True)
    except Exception:  # the host reports a model it cannot load better than we could
        return
    limit = getattr(getattr(model, "text_config", model), "max_position_embeddings", None)
    wanted = args.data.max_len + config.context_tokens
    if limit is not None and wanted > limit:
        raise ConfigError(
            f"--data.max_len {args.data.max_len} + {PREFIX}max_request_tokens {config.max_request_tokens} + "
            f"{PREFIX}max_new_tokens {config.max_new_tokens} = {wanted} tokens, but the model has {limit} positions; "
            "lower one of them"
        )
