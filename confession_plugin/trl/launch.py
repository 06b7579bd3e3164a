"""TRL's own command line with our trainer in the place of its GRPOTrainer."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from confession_plugin.config import Config
from confession_plugin.errors import ConfessionError, ConfigError, HostError
from confession_plugin.startup import Run
from confession_plugin.trl import version

Parsed = tuple[Any, ...]
"""The host's arguments: script, training, model, dataset."""


def check_settings(config: Config) -> None:
    """What our own flags say about this host, before anything of it is imported.

    Raises:
        HostError: no host, or an untested one.
    """
    if config.enable:
        version.check_version(config)
    else:
        version.require_installed()


def show_help(run: Run) -> None:
    """Our flags; for ``--help`` behind the host's own, so that ours stay readable at the end."""
    if {"-h", "--help"} & set(run.host_argv):
        try:
            version.require_installed()
            with contextlib.suppress(SystemExit):
                _parser().parse_args_and_config(args=["--help"])
            print()
        except ConfessionError as error:
            print(f"(no help of the host: {error})\n")
    print(run.help)


def parse(argv: Sequence[str]) -> Parsed:
    """The host's arguments, as its own command line parses them.

    Raises:
        ConfigError: the host refuses them; its own words.
        HostError: it cannot be imported.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            *parsed, unknown = _parser().parse_args_and_config(
                args=list(argv), return_remaining_strings=True, fail_with_unknown_args=False
            )
    except SystemExit:  # argparse has printed its usage, pages long, and then the reason
        raise ConfigError(said.getvalue().rpartition("error: ")[2].strip() or "TRL refuses these flags") from None
    except ImportError as error:
        raise HostError(f"TRL cannot be imported: {error}") from error
    except ValueError as error:
        raise ConfigError(f"TRL refuses these flags: {' '.join(str(error).split())}") from error
    if unknown:
        raise ConfigError(f"unknown flag {unknown[0]}; TRL's grpo command knows no such flag")
    return tuple(parsed)


def train(run: Run) -> None:
    """Run the host's command line; with confessions if the settings enable them."""
    parsed = parse(run.host_argv)
    from trl.scripts import grpo

    if not run.config.enable:
        return grpo.main(*parsed)
    from confession_plugin.trl import limits
    from confession_plugin.trl.trainer import GRPOTrainerWithConfessions

    limits.check(run.config, parsed[1], {})
    with _in_its_place(grpo, functools.partial(GRPOTrainerWithConfessions, confessions=run)):
        grpo.main(*parsed)


@contextlib.contextmanager
def _in_its_place(script: Any, trainer: Any) -> Iterator[None]:
    """Where the host's script looks for its trainer, it finds ours: in the package, or among its own globals."""
    import trl

    owners = [owner for owner in (trl, script) if hasattr(owner, "GRPOTrainer")]
    before = [owner.GRPOTrainer for owner in owners]
    for owner in owners:
        owner.GRPOTrainer = trainer
    try:
        yield
    finally:
        for owner, original in zip(owners, before, strict=True):
            owner.GRPOTrainer = original


def _parser() -> Any:
    try:
        from trl.scripts.grpo import make_parser
    except ImportError as error:
        raise HostError(f"TRL cannot be imported: {error}") from error
    return make_parser(prog=f"{sys.executable} -m confession_plugin.train_trl")


def show_dry_run(run: Run) -> None:
    """Everything that can be known from the flags, the seal included; nothing is started.

    Raises:
        ConfessionError: the run would not start.
    """
    script, training, model, *_ = parse(run.host_argv)
    from confession_plugin.trl import dry_run

    dry_run.show(script, training, model, run)
