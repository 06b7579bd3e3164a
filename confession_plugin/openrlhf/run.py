"""From our flags to the host's command line: what happens between ``main`` and the stock CLI.

The CLI parses its flags under ``if __name__ == "__main__"`` and then calls ``ray.init``.  Two of its own calls are
watched: ``hierarchize`` (it hands over the parsed flags) and ``ray.init`` (the last moment before anything expensive:
the checks run, then Ray starts with our worker hook).
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any

from confession_plugin import cpu
from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfessionError, ConfigError, HostError
from confession_plugin.openrlhf import host, install

CLI = "openrlhf.cli.train_ppo_ray"
WORKER_HOOK = "confession_plugin.openrlhf.run.set_up_worker"


def run_cli(argv: Sequence[str], config: Config) -> None:
    """Run the stock CLI with these (stock) flags; with confessions if `config` enables them.

    Without ``enable``, and with a CUDA device, nothing at all is replaced: this is ``python -m openrlhf.cli...``.
    """
    argv = list(argv)
    if config.enable:
        host.check_version(config)
    if cpu.engaged():
        argv = cpu.prepare_driver(argv)
    if config.enable:
        os.environ.update(config.to_env())
        install.install_driver()
    if config.enable or cpu.engaged() or config.replay_rollouts is not None:
        _watch_start(config)
    sys.argv = [CLI, *argv]
    try:
        runpy.run_module(CLI, run_name="__main__", alter_sys=True)
    except ConfessionError:
        # As long as Ray is up it prints its workers' tracebacks; the one line that says why has to come last.
        import ray

        ray.shutdown()
        raise


def set_up_worker() -> None:
    """Ray's ``worker_process_setup_hook``: the CPU stand-ins where they are needed, then the seams."""
    if cpu.engaged():
        cpu.prepare_worker()
    config = Config.from_env()
    if config.enable:
        install.install_worker()
    elif config.replay_rollouts is not None:
        install.install_replay()


def _watch_start(config: Config) -> None:
    import ray
    from openrlhf.utils import config as host_config

    parsed: dict[str, Any] = {}
    hierarchize, ray_init = host_config.hierarchize, ray.init

    def watched_hierarchize(*args: Any, **kwargs: Any) -> Any:
        host_config.hierarchize = hierarchize
        parsed["args"] = hierarchize(*args, **kwargs)
        return parsed["args"]

    def watched_init(*args: Any, **kwargs: Any) -> Any:
        ray.init = ray_init
        if "args" not in parsed:
            raise HostError(f"this OpenRLHF's {CLI} does not parse its flags as expected; see the tested versions")
        final = finish_config(config, parsed["args"])
        if config.enable:
            check_run(final, parsed["args"])
        return start_ray(ray_init, final, parsed["args"], args, kwargs)

    host_config.hierarchize = watched_hierarchize
    ray.init = watched_init


def finish_config(config: Config, args: Any) -> Config:
    """Settings that follow the host's flags."""
    changes: dict[str, Any] = {}
    if config.seed is None:
        changes["seed"] = args.train.seed
    if config.request_format == "auto":
        changes["request_format"] = "chat" if args.data.apply_chat_template else "plain"
    final = config.model_copy(update=changes)
    os.environ.update(final.to_env())
    return final


def start_ray(ray_init: Callable[..., Any], config: Config, args: Any, positional: Any, keywords: Any) -> Any:
    """``ray.init`` as the CLI calls it, with our worker hook and settings merged into its runtime environment."""
    runtime_env = dict(keywords.get("runtime_env") or {})
    if "worker_process_setup_hook" in runtime_env:
        raise HostError("Ray's worker_process_setup_hook is taken by somebody else; confessions need it")
    runtime_env["worker_process_setup_hook"] = WORKER_HOOK
    runtime_env["env_vars"] = {**(runtime_env.get("env_vars") or {}), **config.to_env()}
    options = cpu.ray_init_options(cpu.gpus_wanted(args)) if cpu.engaged() else {}
    return ray_init(*positional, **{**keywords, **options, "runtime_env": runtime_env})


def check_run(config: Config, args: Any) -> None:
    """What only the host's own flags can tell.

    Raises:
        ConfigError: a combination that cannot work.
        HostError: a seam is missing.
    """
    install.check_host()
    if getattr(args.data, "max_images_per_prompt", 0) > 0:
        raise ConfigError(
            "--data.max_images_per_prompt: confessions about images are not supported; train this run without "
            f"{PREFIX}enable"
        )
    if not args.vllm.num_engines:
        raise ConfigError(f"--vllm.num_engines: {PREFIX}enable needs at least one vLLM engine; give 1 or more")
    _check_context(config, args)
    from confession_plugin.openrlhf.seal import require_seal

    print(f"[confession_plugin] {require_seal(args, config)}", flush=True)


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
