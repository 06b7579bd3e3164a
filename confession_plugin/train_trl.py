"""Train with confessions: ``python3 -m confession_plugin.train_trl <TRL's own grpo flags> [--confession.*]``.

Our flags are taken off the command line and checked; then TRL's own ``grpo`` command runs with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from confession_plugin import dry_call, startup
from confession_plugin.trl import launch


def main(argv: Sequence[str] | None = None) -> None:
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


if __name__ == "__main__":
    main()
