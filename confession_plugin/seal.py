"""The seal check alone: ``python3 -m confession_plugin.seal <the flags of a run>``.

Starts nothing and needs no GPU: the host parses its flags, then random rollouts go through its own code on a tiny
model.  Prints one line and exits with 0 when the seal holds, 1 when it is violated, 2 when the flags cannot work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from confession_plugin import startup


def main(argv: Sequence[str] | None = None) -> int:
    """Check the seal on a run's flags."""
    with startup.exits(startup.EXIT_USAGE):
        run = startup.prepare(argv, confessions=True)
        from confession_plugin.openrlhf import launch

        report = launch.check_seal_alone(run)
    print(report)
    return 0 if report.holds else startup.EXIT_NO


if __name__ == "__main__":
    sys.exit(main())
