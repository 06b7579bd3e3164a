"""Built-in plugin: how honesty rewards become advantages, by the run's own estimator over the scored confessions.

Nothing is summed.  The answer channel is the host's and is finished before this is called; the honesty channel runs on
its own tokens with its own rewards; the results meet only on disjoint masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confession_plugin import hookimpl

if TYPE_CHECKING:
    from confession_plugin.channels import HonestyChannel, TokenValues


class Separate:
    """Estimates the honesty channel."""

    @hookimpl(trylast=True)
    def confession_advantages(self, honesty: HonestyChannel) -> TokenValues:
        """Advantages and returns by the run's own estimator (``--algo.advantage.estimator``), on the scored."""
        from confession_plugin.channels import estimate_scored  # torch: only where advantages are estimated

        return estimate_scored(honesty)
