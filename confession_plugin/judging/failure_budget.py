"""How many missing scores a run accepts from its judge."""

from __future__ import annotations

from collections import Counter, deque

from confession_plugin.config import PREFIX
from confession_plugin.errors import JudgeError
from confession_plugin.judging.redaction import one_line
from confession_plugin.records import Verdict


class FailureBudget:
    """Stops a run that trains on too few verdicts: watches the last `size` judgments of one process.

    The share is taken of `size` even before there are so many, so that one early failure cannot stop a run and a judge
    that is down from the start is found out after ``limit * size`` judgments.
    """

    def __init__(self, limit: float, size: int = 64) -> None:
        self.limit = limit
        self.size = size
        self.reasons: deque[str | None] = deque(maxlen=size)

    def add(self, verdict: Verdict) -> None:
        """Count one judgment.

        Raises:
            JudgeError: more than `limit` of the last `size` judgments had no score; names the last failure.
        """
        self.reasons.append(verdict.unscored)
        reasons = Counter(reason for reason in self.reasons if reason is not None)
        if verdict.unscored is not None and reasons.total() > self.limit * self.size:
            counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            last = f"{verdict.unscored}: {verdict.detail}" if verdict.detail else verdict.unscored
            raise JudgeError(
                f"{reasons.total()} of the last {len(self.reasons)} confessions could not be scored ({counts}); the "
                f"last: {one_line(last, 600)}; fix the judge, or raise {PREFIX}max_unscored (now {self.limit:g})"
            )
