"""Can this run work, and does its seal hold?  ``python3 -m confession_plugin.seal <the flags of a run>``

Starts nothing, asks no server and needs no GPU: all that can be known from the flags is checked (files, plugins, a
dry call of what decides, the judge's flags, engines, images, the model's context), then random rollouts go through
the host's own code on a tiny model.  Prints one line and exits with 0 when the seal holds, 1 when it is violated, 2
when the flags cannot work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from confession_plugin import dry_call, startup


def main(argv: Sequence[str] | None = None) -> int:
    """Check a run's flags, and the seal on them."""
    with startup.exits(startup.EXIT_USAGE):
        run = startup.prepare(argv, confessions=True)
        if run.help is not None:
            print(f"{__doc__}\n{run.help}")
            return 0
        startup.require_judge(run, ask=False)
        dry_call.require(run.plugins, run.config)
        from confession_plugin.openrlhf import launch

        report = launch.check_seal_alone(run)
    print(report)
    return 0 if report.holds else startup.EXIT_NO


if __name__ == "__main__":
    sys.exit(main())
