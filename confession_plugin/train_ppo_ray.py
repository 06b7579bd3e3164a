"""The door: ``python3 -m confession_plugin.train_ppo_ray <every stock flag> [--confession.*]``.

Our flags are taken off the command line and checked; then OpenRLHF's own ``train_ppo_ray`` runs with the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from confession_plugin.config import (
    PREFIX,
    Config,
    OptionGroup,
    check_config,
    format_help,
    parse_config,
    split_argv,
)
from confession_plugin.errors import ConfessionError, ConfigError, HostError
from confession_plugin.plugins import PluginManager, load_plugins

EXIT_USAGE = 2
EXIT_STOPPED = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Parse our flags, check them, and hand over to the stock CLI.

    Exit codes: 2 for settings that cannot work (nothing was started), 3 for a run that stopped on purpose.
    """
    ours, theirs = split_argv(sys.argv[1:] if argv is None else argv)
    try:
        config = prepare(ours, help_wanted=any(word in ("-h", "--help") for word in theirs))
    except ConfessionError as error:
        stop(error, EXIT_USAGE)
    from confession_plugin.openrlhf.run import run_cli

    try:
        run_cli(theirs, config)
    except (ConfigError, HostError) as error:
        stop(error, EXIT_USAGE)
    except ConfessionError as error:
        stop(error, EXIT_STOPPED)


def prepare(ours: Sequence[str], *, help_wanted: bool = False) -> Config:
    """Settings, plugins and judge of this run, checked as far as our own flags go.

    Raises:
        ConfessionError: one line that says what, where and how to mend it.
    """
    # Plugins may add flags, so they are loaded before the flags are parsed: first by a look at two flags alone.
    manager = load_plugins(absolute_paths(parse_config(plugin_flags(ours))))
    options = OptionGroup()
    manager.hook.confession_add_options(options=options)
    if help_wanted:
        print(format_help(options))
        return Config()
    config = absolute_paths(parse_config(ours, options))
    if config.replay_rollouts is not None:
        from confession_plugin.openrlhf import recording

        recording.check(config.replay_rollouts)
    if not config.enable:
        if ours and config.replay_rollouts is None:
            print(f"confession: off; add {PREFIX}enable to train with confessions", file=sys.stderr)
        return config
    check_config(config)
    manager.hook.confession_configure(config=config)
    check_judge(config, manager)
    return config


def check_judge(config: Config, manager: PluginManager) -> None:
    """There is a judge, and a server judge answers.

    Raises:
        ConfigError: no judge, or one that cannot be reached.
    """
    from confession_plugin.judging import probe

    others = [impl for impl in manager.hook.confession_judge.get_hookimpls() if impl.plugin_name != "judge"]
    if config.judge_url is None and not others:
        raise ConfigError(
            f"no honesty judge; give {PREFIX}judge_url a .py file or a server's base URL, or load a plugin with "
            f"confession_judge by {PREFIX}plugins"
        )
    if not config.skip_probe:
        probe(config)


def stop(error: ConfessionError, code: int) -> NoReturn:
    """One line, no traceback."""
    # Ray wraps a worker's error in its own, with the whole remote traceback as text; the cause is the line we wrote.
    cause = getattr(error, "cause", error)
    print(f"confession: {' '.join(str(cause).split())}", file=sys.stderr)
    sys.exit(code)


def absolute_paths(config: Config) -> Config:
    """Paths as every worker can find them, whatever folder it runs in."""
    changes: dict[str, object] = {
        name: str(Path(value).resolve())
        for name in ("request_path", "judge_prompt", "trace_dir", "record_rollouts", "replay_rollouts")
        if (value := getattr(config, name)) is not None
    }
    if config.judge_file:
        changes["judge_url"] = str(Path(config.judge_file).resolve())
    changes["plugins"] = tuple(
        str(Path(spec).resolve()) if spec.endswith(".py") or "/" in spec else spec for spec in config.plugins
    )
    return config.model_copy(update=changes)


def plugin_flags(ours: Sequence[str]) -> list[str]:
    """The part of our command line that says which plugins are on."""
    kept: list[str] = []
    wanted = False
    for token in ours:
        if token.startswith(PREFIX):
            wanted = token[len(PREFIX) :].partition("=")[0] in ("plugins", "block")
        if wanted:
            kept.append(token)
    return kept


if __name__ == "__main__":
    main()
