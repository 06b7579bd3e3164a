"""What happens between our flags and the host's command line: checks, then Ray with our worker hook, then training."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from confession_plugin import session, startup
from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfessionError, ConfigError
from confession_plugin.openrlhf import cluster, cpu, host_flags, recording, seams, version
from confession_plugin.plugins import PluginManager
from confession_plugin.startup import Run

if TYPE_CHECKING:
    from confession_plugin.openrlhf.check.seal import SealReport


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
    else:
        version.require_installed()


def show_help(run: Run) -> None:
    """Our flags; for ``--help`` behind the host's own, so that ours stay readable at the end."""
    try:
        if {"-h", "--help"} & set(run.host_argv):
            version.require_installed()
            if cpu.no_gpu_here():
                cpu.prepare_process()
            host_flags.run(["--help"])
    except SystemExit:
        print()
    except ConfessionError as error:
        print(f"(no help of the host: {error})\n")
    print(run.help)


def show_dry_run(run: Run) -> None:
    """All checks, one whole context, the judge's message and a forecast; see `dry_run.show`."""
    from confession_plugin.openrlhf import dry_run

    dry_run.show(run)


def train(run: Run) -> None:
    """Run the stock command line; with confessions if the settings enable them.

    Without ``enable``, and with a CUDA device, nothing at all is replaced: this is ``python -m openrlhf.cli...``.
    """
    config, argv = run.config, list(run.host_argv)
    cpu.check_cluster()
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


def check_alone(run: Run) -> tuple[Any, Config]:
    """Everything about a run's flags that needs no GPU, on any machine; nothing is started.

    Returns:
        The host's parsed flags, and the finished settings.

    Raises:
        ConfigError, HostError: they cannot work.
    """
    version.check_version(run.config)
    if cpu.no_gpu_here():
        cpu.prepare_process()
    args = host_flags.parse(run.host_argv)
    config = finish_config(run.config, args)
    session.begin(config, run.plugins)
    check_run(config, args)
    return args, config


def check_seal_alone(run: Run) -> SealReport:
    """The seal check on a run's flags, on any machine: nothing is started, so nothing needs the run's GPUs."""
    args, config = check_alone(run)
    from confession_plugin.openrlhf.check import seal

    return seal.check_seal(args, config, run.plugins)


def set_up_worker() -> None:
    """Ray's ``worker_process_setup_hook``: the CPU stand-ins where they are needed, the seams, the job's own hook."""
    if cpu.engaged():
        cpu.prepare_worker()
    config = Config.from_env()
    if config.enable:
        seams.install_worker()
    elif config.replay_rollouts is not None:
        seams.install_replay()
    cluster.call_next_hook()


def _start(args: Any, ray_init: Callable[..., Any], keywords: dict[str, Any]) -> Any:
    """In place of the host's ``ray.init``: finish and check the settings, then start Ray."""
    with startup.exits(startup.EXIT_USAGE):  # whatever is wrong here, nothing was started
        config = finish_config(session.config(), args)
        if config.enable:
            session.begin(config, session.plugins())
            check_run(config, args)
            require_seal(config, args, session.plugins())
    return cluster.start_ray(ray_init, config, args, keywords)


def finish_config(config: Config, args: Any) -> Config:
    """Settings that follow the host's flags."""
    changes: dict[str, Any] = {}
    if config.seed is None:
        changes["seed"] = args.train.seed
    if config.request_format == "auto":
        changes["request_format"] = "chat" if args.data.apply_chat_template else "plain"
    return config.model_copy(update=changes)


def require_seal(config: Config, args: Any, plugins: PluginManager) -> None:
    """The seal holds on the run's own flags, which is said in one line.

    Raises:
        HostError: it does not.
    """
    from confession_plugin.openrlhf.check import seal

    print(f"[confession_plugin] {seal.require_seal(args, config, plugins)}", flush=True)


def check_run(config: Config, args: Any) -> None:
    """What only the host's own flags can tell.

    Raises:
        ConfigError: a combination that cannot work.
        HostError: a seam is missing.
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
    if described := describe_request(config, args):
        print(f"[confession_plugin] {described}", file=sys.stderr, flush=True)


def describe_request(config: Config, args: Any) -> str:
    """The start-up line about the request's turn and tokens under the run's own chat template.

    Raises:
        ConfigError: the template cannot place the request, or it does not fit its budget.
    """
    from transformers import AutoTokenizer

    from confession_plugin.chat import describe_turn_change
    from confession_plugin.dry_call import CASE

    try:
        tokenizer = AutoTokenizer.from_pretrained(args.actor.model_name_or_path, trust_remote_code=True)
    except Exception:  # the host reports a tokenizer it cannot load better than we could
        return ""
    return describe_turn_change(
        tokenizer,
        session.plugins().hook.confession_request(rollout=CASE),
        chat=config.request_format == "chat",
        budget=config.max_request_tokens,
        role=config.request_role,
    )


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
