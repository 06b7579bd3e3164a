"""From a command line to a checked run: the same way for every command.

    with startup.exits(startup.EXIT_USAGE):
        run = startup.prepare(argv)

Plugins are loaded and configured here, once per process.  What cannot work is one line on stderr and an exit code:

    0  done, or yes          1  no (a check that does not hold, a judge that can be played)
    2  settings that cannot work; nothing was started          3  a run that stopped on purpose
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confession_plugin import session
from confession_plugin.config import PREFIX, Config, OptionGroup, check_config, format_help, parse_config, split_argv
from confession_plugin.errors import ConfessionError, ConfigError, HostError
from confession_plugin.plugins import PluginManager, load_plugins

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_STOPPED = 3


@dataclass(frozen=True)
class Run:
    """A command line, read."""

    config: Config
    """Ours, checked."""
    plugins: PluginManager
    """Loaded; configured where confessions are on."""
    host_argv: tuple[str, ...]
    """What is not ours, in order."""


def prepare(argv: Sequence[str] | None = None, *, confessions: bool | None = None) -> Run:
    """Settings and plugins, checked as far as our own flags go.

    Args:
        argv: the command line without the program; None for this process's own.
        confessions: whether the command needs the plugins; None: where ``--confession.enable`` says so.

    Raises:
        ConfessionError: one line that says what, where and how to fix it.
    """
    ours, theirs = _split(argv)
    # Plugins may add flags, so they are loaded before the flags are parsed: first by a look at two flags alone.
    plugins = load_plugins(absolute_paths(parse_config(plugin_flags(ours))))
    options = OptionGroup()
    plugins.hook.confession_add_options(options=options)
    if confessions is None and any(word in ("-h", "--help") for word in theirs):
        print(format_help(options))
        return Run(Config(), plugins, tuple(theirs))
    config = absolute_paths(parse_config(ours, options))
    if ours and not (config.enable if confessions is None else confessions) and config.replay_rollouts is None:
        print(f"confession: off; add {PREFIX}enable to train with confessions", file=sys.stderr)
    if config.enable if confessions is None else confessions:
        check_config(config)
        plugins.hook.confession_configure(config=config)
    session.begin(config, plugins)
    return Run(config, plugins, tuple(theirs))


def host_flags(argv: Sequence[str] | None = None) -> list[str]:
    """The part of a command line that is not ours."""
    return _split(argv)[1]


def _split(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    return split_argv(sys.argv[1:] if argv is None else argv)


def require_judge(run: Run) -> None:
    """There is a judge, and a server judge answers.

    Raises:
        ConfigError: no judge, or one that cannot be reached.
    """
    from confession_plugin.judging import probe

    others = [impl for impl in run.plugins.hook.confession_judge.get_hookimpls() if impl.plugin_name != "judge"]
    if run.config.judge_url is None and not others:
        raise ConfigError(
            f"no honesty judge; give {PREFIX}judge_url a .py file or a server's base URL, or load a plugin with "
            f"confession_judge by {PREFIX}plugins"
        )
    if not run.config.skip_probe:
        probe(run.config)


@contextmanager
def exits(code: int) -> Iterator[None]:
    """Inside, an error that a user can fix ends the process with one line and no traceback.

    The exit code is 2 for settings and hosts that cannot work, else `code`.
    """
    try:
        yield
    except ConfessionError as error:
        # A cluster wraps a worker's error in its own, with the remote traceback as text; the cause is our one line.
        print(f"confession: {' '.join(str(getattr(error, 'cause', error)).split())}", file=sys.stderr)
        sys.exit(EXIT_USAGE if isinstance(error, (ConfigError, HostError)) else code)


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
