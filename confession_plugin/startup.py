"""From a command line to a checked run: the same way for every command.

    with startup.exits(startup.EXIT_USAGE):
        run = startup.prepare(argv)

Plugins are loaded and configured here, once per process, and not at all where confessions are off.  The host's flags
are parsed later, by the host: what `confession_configure` sees in the driver may have no ``seed`` and a
``request_format`` of ``auto``.  Every process that samples or trains is configured with the finished settings.

What cannot work is one line on stderr and an exit code:

    0  done, or yes          1  no (a check that does not hold, a judge that can be played)
    2  settings that cannot work; nothing was started          3  a run that stopped on purpose
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confession_plugin import hookspecs, session, unsealed
from confession_plugin.command_line import format_help, selection, split_argv, wants_help
from confession_plugin.config import PREFIX, Config, OptionGroup, check_config, close_to, flags_of, parse_config
from confession_plugin.errors import ConfessionError, ConfigError, HostError
from confession_plugin.plugins import PluginManager, describe_plugins, load_plugins

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_STOPPED = 3


@dataclass(frozen=True)
class Run:
    """A command line, read."""

    config: Config
    """Ours, checked."""
    plugins: PluginManager
    """Loaded and configured; empty where confessions are off."""
    host_argv: tuple[str, ...]
    """What is not ours, in order."""
    help: str | None = None
    """Our part of the help text, where that is all that is wanted."""

    said: str = ""
    """What a run says at its start and at its end: flags of ours were given and confessions are off all the same, or
    the run is unsealed."""


def prepare(argv: Sequence[str] | None = None, *, confessions: bool | None = None) -> Run:
    """Settings and plugins, checked as far as our own flags go.

    Args:
        argv: the command line without the program; None for this process's own.
        confessions: whether the command needs the plugins; None: where ``--confession.enable`` says so.

    Raises:
        ConfessionError: one line that says what, where and how to fix it.
    """
    ours, theirs = split_argv(sys.argv[1:] if argv is None else argv)
    if wants_help(ours, theirs):
        return Run(Config(), PluginManager(), tuple(theirs), help=_help(ours))
    wanted = parse_config(selection(ours, ("enable", "dry_run", "replay_rollouts")))
    on = confessions if confessions is not None else wanted.enable or wanted.dry_run
    run = _with_confessions(ours, theirs) if on else _without(ours, theirs)
    session.begin(run.config, run.plugins)
    return run


def _with_confessions(ours: Sequence[str], theirs: Sequence[str]) -> Run:
    # Plugins may add flags, so they are loaded before the flags are parsed: first by a look at a few flags alone.
    plugins = load_plugins(_first_look(ours))
    config = absolute_paths(parse_config(ours, _options_of(plugins)))
    config = config.model_copy(update={"enable": True, "run_id": uuid.uuid4().hex[:12]})
    check_config(config)
    unsealed.check(config)
    _check_deciders(config, plugins)
    if described := describe_plugins(plugins, config):
        print(f"[confession_plugin] {described}", file=sys.stderr, flush=True)
    plugins.hook.confession_configure(config=config)
    return Run(config, plugins, tuple(theirs), said=unsealed.warning(config))


def from_settings(config: Config, *, say: bool = True) -> Run:
    """The same from settings that were written in Python: checked, with plugins loaded and configured.

    Args:
        say: print the line about plugins.

    Raises:
        ConfessionError: one line that says what, where and how to fix it.
    """
    config = absolute_paths(config).model_copy(update={"enable": True, "run_id": uuid.uuid4().hex[:12]})
    plugins = load_plugins(config)
    options = _options_of(plugins).options
    if unknown := sorted(set(config.extra) - set(options)):
        raise ConfigError(f"extra: no plugin adds {', '.join(unknown)}; known: {', '.join(options) or 'none'}")
    defaults = {name: option.default for name, option in options.items()}
    config = config.model_copy(update={"extra": {**defaults, **config.extra}})
    check_config(config)
    _check_deciders(config, plugins)
    if say and (described := describe_plugins(plugins, config)):
        print(f"[confession_plugin] {described}", file=sys.stderr, flush=True)
    plugins.hook.confession_configure(config=config)
    return Run(config, plugins, ())


def _without(ours: Sequence[str], theirs: Sequence[str]) -> Run:
    """Off means off: no plugin is imported, so the flags that plugins add are not known and not looked at."""
    names = [name for name, _ in flags_of(ours)]
    ours = selection(ours, [name for name in names if name in Config.model_fields or close_to(name)])
    config = absolute_paths(parse_config(ours))
    given = ", ".join(PREFIX + name for name in dict.fromkeys(names))
    off = ""
    if names and config.replay_rollouts is None:
        off = f"OFF: {given} without {PREFIX}enable: this is the stock run, nothing confesses; add {PREFIX}enable"
    return Run(config, PluginManager(), tuple(theirs), said=off)


def _first_look(ours: Sequence[str]) -> Config:
    return absolute_paths(parse_config(selection(ours, ("plugins", "block", "trace_hooks"))))


def _options_of(plugins: PluginManager) -> OptionGroup:
    options = OptionGroup()
    plugins.hook.confession_add_options(options=options)
    return options


def _help(ours: Sequence[str]) -> str:
    try:
        return format_help(_options_of(load_plugins(_first_look(ours))))
    except ConfessionError as error:  # help is wanted most where something is broken
        return f"{format_help()}\n(the plugins' own flags are missing: {_one_line(error)})\n"


def _check_deciders(config: Config, plugins: PluginManager) -> None:
    """Every decision has somebody to make it.

    Raises:
        ConfigError: a built-in plugin was blocked and nothing does its job.
    """
    for hook in sorted(hookspecs.DECIDERS):
        if not getattr(plugins.hook, hook).get_hookimpls():
            blocked = f"{PREFIX}block {','.join(config.block)}"
            beside = f", beside {PREFIX}judge_url," if hook == "confession_judge" and config.judge_url else ""
            raise ConfigError(
                f"{blocked}{beside} leaves nothing that decides {hook}; take the name out, or load a plugin with "
                f"{hook} by {PREFIX}plugins"
            )


def require_judge(run: Run, *, ask: bool = True) -> None:
    """There is a judge, and a server judge answers.

    Args:
        ask: send a server one request, unless the settings say not to.

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
    if ask and not run.config.skip_probe:
        probe(run.config)


def require_tested(host: str, found: str, tested: Sequence[str], config: Config) -> str:
    """The host's installed version, if this release was tested with it.

    Raises:
        HostError: it was not, and ``--confession.untested_host`` is not given.
    """
    if found.split("+")[0] not in tested and not config.untested_host:
        raise HostError(
            f"{host} {found} is untested with this release (tested: {', '.join(tested)}); install one of these, "
            f"or add {PREFIX}untested_host to try"
        )
    return found


@contextmanager
def said_at_both_ends(text: str) -> Iterator[None]:
    """A line on stderr before and after a run, whose own output is long; nothing where the text is empty."""
    if text:
        print(f"confession: {text}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if text:
            print(f"confession: {text}", file=sys.stderr, flush=True)


@contextmanager
def exits(code: int) -> Iterator[None]:
    """Inside, an error that a user can fix ends the process with one line and no traceback.

    The exit code is 2 for settings and hosts that cannot work, else `code`.
    """
    try:
        yield
    except ConfessionError as error:
        print(f"confession: {_one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_USAGE if isinstance(error, (ConfigError, HostError)) else code)


def _one_line(error: ConfessionError) -> str:
    # A cluster wraps a worker's error in its own, with the remote traceback as text; the cause is our one line.
    return " ".join(str(getattr(error, "cause", error)).split())


PATHS = ("request_path", "judge_prompt", "trace_dir", "record_rollouts", "replay_rollouts", "unsealed_coupling")


def absolute_paths(config: Config) -> Config:
    """Paths as every worker can find them, whatever folder it runs in."""
    changes: dict[str, object] = {
        name: str(Path(value).resolve()) for name in PATHS if (value := getattr(config, name)) is not None
    }
    if config.judge_file:
        changes["judge_url"] = str(Path(config.judge_file).resolve())
    for name in ("plugins", "block"):  # a file is blocked by the path it is loaded by
        changes[name] = tuple(
            str(Path(spec).resolve()) if spec.endswith(".py") or "/" in spec else spec
            for spec in getattr(config, name)
        )
    return config.model_copy(update=changes)
