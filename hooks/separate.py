"""How the two reward channels become advantages: one run of the host's own estimator per channel.

Nothing is summed.  The answer channel runs on the whole batch with the task rewards, exactly as without us; the
honesty channel runs on the scored confessions with the honesty rewards; the results meet only on disjoint masks.
"""

from __future__ import annotations

from confession_plugin import hookimpl
from confession_plugin.channels import TwoChannelBatch, estimate_scored, whole_batch


@hookimpl(trylast=True)
def confession_advantages(batch: TwoChannelBatch) -> TwoChannelBatch:
    """Advantages and returns of both channels by the run's own estimator (``--algo.advantage.estimator``)."""
    answer = batch.estimate(batch.answer, whole_batch(batch.answer), batch.answer.group_size)
    honesty = estimate_scored(batch, batch.honesty)
    return batch.merge(answer, honesty)
