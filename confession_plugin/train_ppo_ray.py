"""Train with confessions: ``python3 -m confession_plugin.train_ppo_ray <every stock flag> [--confession.*]``.

Our flags are taken off the command line and checked; then OpenRLHF's own ``train_ppo_ray`` runs with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from confession_plugin import startup


def main(argv: Sequence[str] | None = None) -> None:
    """Parse our flags, check them, and hand over to the stock command line."""
    with startup.exits(startup.EXIT_USAGE):
        run = startup.prepare(argv)
        if run.config.enable:
            startup.require_judge(run)
        from confession_plugin.openrlhf import launch

        launch.check_settings(run.config)
    with startup.exits(startup.EXIT_STOPPED):
        launch.train(run)


if __name__ == "__main__":
    main()
