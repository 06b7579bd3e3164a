"""The seal check alone: ``python3 -m confession_plugin.seal <the flags of a run>``.

Starts nothing: the host parses its flags, then random rollouts go through its own code on a tiny model.  Prints one
line and exits with 0 when the seal holds, 1 when it is violated, 2 when the flags cannot work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from confession_plugin.config import OptionGroup, parse_config, split_argv
from confession_plugin.errors import ConfessionError


def main(argv: Sequence[str] | None = None) -> int:
    """Check the seal on a run's flags."""
    from confession_plugin.plugins import load_plugins
    from confession_plugin.train_ppo_ray import absolute_paths, plugin_flags

    ours, theirs = split_argv(sys.argv[1:] if argv is None else argv)
    try:
        options = OptionGroup()
        named = absolute_paths(parse_config(plugin_flags(ours)))
        load_plugins(named).hook.confession_add_options(options=options)
        config = absolute_paths(parse_config(ours, options))
        from confession_plugin import cpu
        from confession_plugin.openrlhf import host, install, lab, seal

        host.check_version(config)
        if cpu.engaged():
            theirs = cpu.prepare_driver(theirs)
        args = lab.parse_host_flags(theirs)
        install.check_host()
        report = seal.check_seal(args, config)
    except ConfessionError as error:
        print(f"confession: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
