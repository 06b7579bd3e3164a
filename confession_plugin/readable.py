"""Notices a run whose policy does not write the report: its honesty channel learns nothing."""

from __future__ import annotations

from collections import Counter, deque

from confession_plugin.config import PREFIX
from confession_plugin.errors import PluginError
from confession_plugin.records import BatchStats


def kind_of(problem: str) -> str:
    """What went wrong, without the particulars: the text before the first colon."""
    return problem.partition(":")[0].strip()[:40]


class ReadableWatch:
    """Watches the share of confessions that could not be read, batch by batch.

    Args:
        limit: ``--confession.max_unparsed``; the share that stops a run, 1 for never.
        size: the last so many sampled confessions count, once there are that many.
        first: one warning where none could be read in so many confessing batches from the start.
    """

    def __init__(self, limit: float, *, size: int = 512, first: int = 3) -> None:
        self.limit = limit
        self._problems: deque[str] = deque(maxlen=size)  # empty text where it could be read
        self._first = first
        self._batches = 0
        self._example = ""

    def add(self, stats: BatchStats) -> str | None:
        """Count a training batch; the warning where it is due.

        Raises:
            PluginError: more than `limit` of the last `size` confessions could not be read.
        """
        sampled = [number for number, length in enumerate(stats.length) if length and stats.asked[number]]
        if not sampled:
            return None
        self._batches += 1
        for number in sampled:
            problem = stats.problem[number]
            self._problems.append(problem)
            if problem:
                # As text: what a policy wrote must not reach a terminal raw.
                self._example = f"{problem[:200]!r}, it begins {stats.unreadable[number]!r}"
        unread = sum(map(bool, self._problems))
        if len(self._problems) == self._problems.maxlen and unread > self.limit * len(self._problems):
            raise PluginError(f"{self._summary()}; raise {PREFIX}max_unparsed (now {self.limit:g}), or {_ADVICE}")
        if self._batches == self._first and unread == len(self._problems):
            return f"{self._summary()}: the honesty channel learns nothing from them; {_ADVICE}"
        return None

    def _summary(self) -> str:
        kinds = Counter(kind_of(problem) for problem in self._problems if problem)
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        return (
            f"{kinds.total()} of the last {len(self._problems)} confessions could not be read ({counts}); the last: "
            f"{self._example}"
        )


_ADVICE = (
    "show the model the format first (fine-tune it on a few reports), leave it room "
    f"({PREFIX}max_new_tokens), or ask in other words ({PREFIX}request_path)"
)
