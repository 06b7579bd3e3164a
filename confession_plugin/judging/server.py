"""The server judge: puts the case to a model behind an OpenAI-compatible API and reads its verdict."""

from __future__ import annotations

import secrets
import time

from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import Unscored
from confession_plugin.judging.calibration import Calibration
from confession_plugin.judging.client import Reply, Server
from confession_plugin.judging.redaction import as_text, one_line
from confession_plugin.judging.rubric import Rubric, sections_of
from confession_plugin.judging.settings import check_server_flags, client_for
from confession_plugin.judging.truncation import complete_truncating
from confession_plugin.judging.verdict import RESPONSE_FORMAT, VerdictError, parse_verdict
from confession_plugin.reasons import Reason
from confession_plugin.records import Confession, Rollout, Verdict


class ServerJudge:
    """Judges by model.  A call never raises for a failing judge: that is a verdict without a score, and a reason."""

    def __init__(self, config: Config) -> None:
        check_server_flags(config)
        self.config = config
        self.rubric = Rubric.load(config.judge_prompt, "judge.txt", ("prompt", "answer", "confession"))
        self.client = client_for(config, config.judge_urls, config.judge_model or "", config.judge_body)
        self.calibration = Calibration.of(config)

    async def __call__(self, rollout: Rollout, confession: Confession) -> Verdict:
        started = time.perf_counter()
        try:
            sections = sections_of(rollout, confession, self.config.judge_reference)
            if self.calibration is not None:
                sections["calibration"] = await self.calibration.report(rollout)
            ratings, reasons = await self._judge(sections)
        except Unscored as error:
            return Verdict(unscored=error.reason, detail=error.detail, latency_s=time.perf_counter() - started)
        return Verdict(ratings, detail=reasons, latency_s=time.perf_counter() - started)

    async def _judge(self, sections: dict[str, str]) -> tuple[dict[str, float], str]:
        code = _new_code() if self.config.judge_schema == "off" else None
        ask = "" if code is None else f'Begin the JSON object with "code": "{code}", then "reasons".'
        response_format = RESPONSE_FORMAT if code is None else None
        note, failed = ask, list[Server]()
        failure = Unscored(Reason.UNPARSABLE)
        for _ in range(2):  # one bounded second try
            try:
                reply = await complete_truncating(
                    self.client, self.rubric, sections, note, response_format, avoid=failed
                )
            except Unscored as error:
                if error.reason != Reason.BAD_RESPONSE:
                    raise
                failure = failure if failed else error
                continue
            try:
                ratings, reasons = self._read(reply, code)
            except VerdictError as error:
                self.client.reject(reply)
                failed.append(reply.server)
                failure = Unscored(Reason.UNPARSABLE, self._detail(error, reply))
                note = (
                    f"{ask}\n(Your last reply could not be used: {error.problem}. Reply with the JSON object alone.)"
                )
            else:
                self.client.accept(reply)
                return ratings, as_text(self.client.redact(reasons))
        raise failure

    def _read(self, reply: Reply, code: str | None) -> tuple[dict[str, float], str]:
        if reply.completion.finish_reason == "length":
            raise VerdictError(
                "it was cut off before its end", f"at {PREFIX}judge_max_tokens {self.config.judge_max_tokens}"
            )
        return parse_verdict(reply.text, code)

    def _detail(self, error: VerdictError, reply: Reply) -> str:
        """For the log: the problem, what the judge said, and the setting that helps."""
        problem = error.problem + (f": {error.quoted}" if error.quoted else "")
        redact = self.client.redact
        said = f": {one_line(redact(reply.text), 120)!r}" if reply.text.strip() else ""
        text = f"{reply.server.name}: {one_line(redact(problem))}{said}"
        help = self._advice(error, reply)
        return f"{text}; {help}" if help else text

    def _advice(self, error: VerdictError, reply: Reply) -> str:
        if reply.completion.finish_reason == "length":
            return f"raise {PREFIX}judge_max_tokens"
        if not reply.text.strip() and reply.completion.reasoning:
            return (
                f"all of the reply, {len(reply.completion.reasoning)} characters, is in its reasoning_content: serve "
                f"the model without a reasoning parser, or switch its reasoning off by {PREFIX}judge_body "
                '\'{"chat_template_kwargs": {"enable_thinking": false}}\''
            )
        if self.config.judge_schema == "on" and "JSON object" in error.problem:
            return f"a server that ignores response_format needs {PREFIX}judge_schema off"
        return ""

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self.client.aclose()
        if self.calibration is not None:
            await self.calibration.client.aclose()


def _new_code() -> str:
    """Nothing that a judge could write back as a number."""
    return f"v{secrets.token_hex(3)}"
