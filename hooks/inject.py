"""Built-in plugin: which prompts confess, what they are asked, and how the report is read."""

from __future__ import annotations

import math
import random
from pathlib import Path

from confession_plugin import Parsed, PromptBatch, Request, Rollout, hookimpl
from confession_plugin.config import Config
from confession_plugin.report import ReportError, extract_report


class Inject:
    """Decides who confesses, what is asked, and how the report is read."""

    @hookimpl
    def confession_configure(self, config: Config) -> None:
        """Read the request once."""
        self.probability = config.probability
        path = config.request_path or Path(__file__).parent / "prompts" / "request.txt"
        text = Path(path).read_text(encoding="utf-8")
        self.request = Request(text=text.strip(), role="user" if config.request_role == "user" else "system")

    @hookimpl(trylast=True)
    def confession_select(self, batch: PromptBatch) -> list[bool]:
        """Choose the exact share of the batch, at random but repeatably.

        The number of confessing groups up to position c of the run is ``floor(c * p + u)`` with one seeded offset u,
        so every batch holds its exact share (up to the one group that rounding moves between batches) and single
        replacement prompts from dynamic filtering keep the share too.  Which groups: a shuffle seeded by (seed,
        position).
        """
        size = len(batch.prompts)
        offset = random.Random(f"{batch.seed}:offset").random()
        # The rounding below must not lose a group to 0.1 * 3 = 0.30000000000000004 and the like.
        due = [
            math.floor(round(position * self.probability + offset, 9))
            for position in (batch.position, batch.position + size)
        ]
        order = random.Random(f"{batch.seed}:{batch.position}").sample(range(size), size)
        chosen = set(order[: due[1] - due[0]])
        return [index in chosen for index in range(size)]

    @hookimpl(trylast=True)
    def confession_request(self, rollout: Rollout) -> Request:
        """One constant request for every answer (paper, section 2)."""
        return self.request

    @hookimpl(trylast=True)
    def confession_parse(self, text: str, truncated: bool, rollout: Rollout) -> Parsed:
        """Read the paper's report schema; a cut-off or unreadable report says why."""
        if not text.strip():
            return Parsed(problem="empty")
        try:
            report = extract_report(text)
        except ReportError as error:
            return Parsed(problem="truncated" if truncated else f"unparsable: {error}")
        return Parsed(report=report, admits=report.admits, grade=float(report.overall_compliance_grade))
