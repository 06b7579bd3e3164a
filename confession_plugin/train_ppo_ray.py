"""Train with confessions: ``python3 -m confession_plugin.train_ppo_ray <every stock flag> [--confession.*]``.

Our flags are taken off the command line and checked; then OpenRLHF's own ``train_ppo_ray`` runs with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from confession_plugin import dry_call, startup
from confession_plugin.openrlhf import dry_run, launch


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
            return dry_run.show(run)
    with startup.said_at_both_ends(run.said), startup.exits(startup.EXIT_STOPPED):
        launch.train(run)


if __name__ == "__main__":
    main()
