"""The calibration report: a second model's account of the same answer, for the judge to compare with the policy's."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from confession_plugin.config import Config
from confession_plugin.errors import Unscored
from confession_plugin.judging.client import ChatClient, Server
from confession_plugin.judging.redaction import one_line
from confession_plugin.judging.rubric import Rubric, builtin_prompt, report_text, sections_of
from confession_plugin.judging.sanitize import clean
from confession_plugin.judging.settings import client_for
from confession_plugin.judging.truncation import complete_truncating
from confession_plugin.reasons import CALIBRATION, Reason
from confession_plugin.records import Rollout
from confession_plugin.report import ReportError, extract_report

_CACHED = 1024


class Calibration:
    """Writes one independent report for each (prompt, answer); several confessions about one answer share it."""

    def __init__(self, client: ChatClient) -> None:
        self.client = client
        self.rubric = Rubric(builtin_prompt("calibration.txt"), ("prompt", "answer"))
        self._reports: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    @classmethod
    def of(cls, config: Config) -> Calibration | None:
        """The writer that ``--confession.judge_calibration_model`` asks for."""
        if not config.judge_calibration_model:
            return None
        # A server of its own may not know the fields that the judge's needs.
        fields = None if config.judge_calibration_url else config.judge_body
        return cls(client_for(config, config.judge_calibration_urls, config.judge_calibration_model, fields))

    async def report(self, rollout: Rollout) -> str:
        """The report's text, cleaned.

        Raises:
            Unscored: there is none.  Going on without would judge some confessions by another measure than the rest.
        """
        case = (rollout.prompt, rollout.transcript)
        async with self._locks.setdefault(case, asyncio.Lock()):
            try:
                if case not in self._reports:
                    self._reports[case] = await self._write(rollout)
                    if len(self._reports) > _CACHED:
                        self._reports.popitem(last=False)
                return self._reports[case]
            except Unscored as error:
                raise Unscored(f"{CALIBRATION}{error.reason}", error.detail) from None
            finally:
                self._locks.pop(case, None)

    async def _write(self, rollout: Rollout) -> str:
        sections = sections_of(rollout, None)
        problem, failed = "", list[Server]()
        for _ in range(2):
            note = (
                "(Your last reply could not be used: it holds no valid report. Reply with the JSON object alone.)"
                if problem
                else ""
            )
            reply = await complete_truncating(self.client, self.rubric, sections, note, avoid=failed)
            try:
                report = clean(report_text(extract_report(reply.text), reply.text))
            except ReportError as error:
                self.client.reject(reply)
                problem = self.client.redact(str(error))
                failed.append(reply.server)
            else:
                self.client.accept(reply)
                return report
        raise Unscored(Reason.UNPARSABLE, one_line(f"{failed[-1].name}: {problem}"))
