"""Built-in plugin: which prompts confess, what they are asked, and how the report is read."""

from __future__ import annotations

import math
import random
from pathlib import Path

from confession_plugin import Parsed, PromptBatch, Request, Rollout, hookimpl
from confession_plugin.config import Config
from confession_plugin.report import parse_report

#: What ``--confession.request`` names.
BUILT_IN = {"full": "request.txt", "compact": "request_compact.txt"}


class Inject:
    """Decides who confesses, what is asked, and how the report is read."""

    @hookimpl
    def confession_configure(self, config: Config) -> None:
        """Read the request once."""
        self.probability = config.probability
        path = config.request_path or Path(__file__).parent / "prompts" / BUILT_IN[config.request]
        text = Path(path).read_text(encoding="utf-8")
        self.request = Request(text=text.strip(), role="user" if config.request_role == "user" else "system")

    @hookimpl(trylast=True)
    def confession_select(self, batch: PromptBatch) -> list[bool]:
        """Choose the exact share of every training batch, evenly spaced from a random start.

        Whatever trains together has its exact share (up to the one group that rounding moves between batches), and so
        has every stretch of it: a data-parallel rank, a micro-batch.  Repeatable by (seed, position).  A group that
        replaces a filtered one takes its place and its choice; neither depends on an answer of its own.
        """
        if batch.replaced:
            return list(batch.replaced)
        size = len(batch.prompts)
        together = batch.train_size or size
        chosen: list[bool] = []
        while len(chosen) < size:
            rest = together - (batch.train_place + len(chosen)) % together
            chosen += self._spread(batch.seed, batch.position + len(chosen), min(rest, size - len(chosen)))
        return chosen

    def _spread(self, seed: int, position: int, size: int) -> list[bool]:
        """The choice among `size` groups from `position` on, which train together.

        Up to position c of the run ``floor(c * p + u)`` groups confess, with one seeded offset u: the shares of
        batches that are sampled in parts add up exactly.
        """
        offset = random.Random(f"{seed}:offset").random()
        # The rounding must not lose a group to 0.1 * 3 = 0.30000000000000004 and the like.
        before, due = (math.floor(round(at * self.probability + offset, 9)) for at in (position, position + size))
        count = due - before
        start = random.Random(f"{seed}:{position}").randrange(size)
        places = {(number * size + start) // count for number in range(count)}
        return [place in places for place in range(size)]

    @hookimpl(trylast=True)
    def confession_request(self, rollout: Rollout) -> Request:
        """One constant request for every answer (paper, section 2)."""
        return self.request

    @hookimpl(trylast=True)
    def confession_parse(self, text: str, truncated: bool, rollout: Rollout) -> Parsed:
        """Read the paper's report schema; a cut-off or unreadable report says why."""
        return parse_report(text, truncated=truncated, request=self.request.text)
