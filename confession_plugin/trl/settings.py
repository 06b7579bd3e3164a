"""From a `ConfessionConfig` to settings and plugins that are checked and finished."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from confession_plugin import dry_call, session, startup
from confession_plugin.chat import describe_turn_change
from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfigError
from confession_plugin.startup import Run

T = TypeVar("T")


def ready(config: Config, *, main: bool) -> Run:
    """The settings, checked, and their plugins, loaded and configured; the judge answers, and every decider decides.

    Args:
        main: the process that speaks for all: it alone asks the judge.

    Raises:
        ConfessionError: one line that says what, where and how to fix it.
    """
    run = startup.from_settings(config, say=main)
    if main:
        in_a_thread(lambda: startup.require_judge(run))
        in_a_thread(lambda: dry_call.require(run.plugins, run.config))
    return run


def in_a_thread(work: Callable[[], T]) -> T:
    """Do it in a thread of its own: a notebook's thread has an event loop that is running already."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="confession-checks")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def finished(config: Config, args: Any, tokenizer: Any, dataset: Any) -> Config:
    """Settings that follow the host's: the seed, and whether prompts are conversations."""
    changes: dict[str, Any] = {}
    if config.seed is None:
        changes["seed"] = args.seed
    if config.request_format == "auto":
        chat = _conversational(dataset) and getattr(tokenizer, "chat_template", None) is not None
        changes["request_format"] = "chat" if chat else "plain"
    return config.model_copy(update=changes)


def _conversational(dataset: Any) -> bool:
    """Are the prompts lists of messages?"""
    first = next(iter(dataset), None) if dataset is not None else None
    return first is not None and not isinstance(first.get("prompt", ""), str)


def check_context(run: Run, config: Config, args: Any, model: Any, tokenizer: Any, *, say: bool) -> None:
    """The request can be placed and fits; answer, request and confession fit the model's positions.

    Raises:
        ConfigError: they do not.
    """
    described = describe_turn_change(
        tokenizer,
        run.plugins.hook.confession_request(rollout=dry_call.CASE),
        chat=config.request_format == "chat",
        budget=config.max_request_tokens,
        role=config.request_role,
    )
    limit, wanted = positions(model), args.max_completion_length + config.context_tokens
    if limit is not None and wanted >= limit:
        raise ConfigError(
            f"max_completion_length {args.max_completion_length} + {PREFIX}max_request_tokens "
            f"{config.max_request_tokens} + {PREFIX}max_new_tokens {config.max_new_tokens} = {wanted} tokens leave no "
            f"room for a prompt in the model's {limit} positions; lower one of them"
        )
    if say:
        print(f"[confession_plugin] {described}", file=sys.stderr, flush=True)


def positions(model: Any) -> int | None:
    """Positions of the model; None where its configuration does not say."""
    config = model.config.get_text_config()
    limit: int | None = getattr(config, "max_position_embeddings", None)
    return limit


def begin(run: Run, config: Config) -> Run:
    """Make the finished settings this process's, and the plugins' too."""
    run.plugins.hook.confession_configure(config=config)
    session.begin(config, run.plugins)
    return Run(config, run.plugins, run.host_argv)
