"""A host's command line with confessions: the steps that are the same for every host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from confession_plugin import dry_call, startup
from confession_plugin.config import Config
from confession_plugin.startup import Run


class Launch(Protocol):
    """What a host's ``launch`` module does at each step."""

    def check_settings(self, config: Config) -> None:
        """Raises an error in one line where our own flags cannot work with this host."""

    def show_help(self, run: Run) -> None:
        """Prints the host's help where it is wanted, and ours at the end."""

    def show_dry_run(self, run: Run) -> None:
        """Checks all that can be checked, says what a run would be, and starts nothing."""

    def train(self, run: Run) -> None:
        """Hands over to the host."""


def run_host(launch: Launch, argv: Sequence[str] | None = None) -> None:
    """Parse our flags, check them, and hand over to the stock command line."""
    with startup.exits(startup.EXIT_USAGE):
        run = startup.prepare(argv)
        if run.help is not None:
            return launch.show_help(run)
        launch.check_settings(run.config)
        if run.config.enable:
            startup.require_judge(run)
            dry_call.require(run.plugins, run.config)
        if run.config.dry_run:
            return launch.show_dry_run(run)
    with startup.said_at_both_ends(run.said), startup.exits(startup.EXIT_STOPPED):
        launch.train(run)
