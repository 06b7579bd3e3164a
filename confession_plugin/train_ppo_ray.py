"""Train with confessions: ``python3 -m confession_plugin.train_ppo_ray <every stock flag> [--confession.*]``.

Our flags are taken off the command line and checked; then OpenRLHF's own ``train_ppo_ray`` runs with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from confession_plugin.host_command import run_host
from confession_plugin.openrlhf import launch


def main(argv: Sequence[str] | None = None) -> None:
    """Parse our flags, check them, and hand over to the stock command line."""
    run_host(launch, argv)


if __name__ == "__main__":
    main()
