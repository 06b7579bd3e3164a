"""The server judge: puts the case to a model behind an OpenAI-compatible API and reads its verdict."""

from __future__ import annotations

import json
import os
import re
import secrets
import time

from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfigError, Unscored
from confession_plugin.judging.calibration import Calibration
from confession_plugin.judging.client import ChatClient
from confession_plugin.judging.fitting import complete_fitting
from confession_plugin.judging.rubric import Rubric, sections_of
from confession_plugin.judging.verdict import RESPONSE_FORMAT, VerdictError, parse_verdict
from confession_plugin.records import Confession, Rollout, Verdict


class HttpJudge:
    """Judges by model.  A call never raises for a failing judge: that is a verdict without a score, and a reason."""

    def __init__(self, config: Config) -> None:
        _check_urls(config)
        self.config = config
        self.rubric = Rubric.load(config.judge_prompt, "judge.txt", ("prompt", "answer", "confession"))
        body = json.loads(config.judge_body) if config.judge_body else {}
        self.client = ChatClient(
            config.judge_urls,
            config.judge_model or "",
            key=os.environ.get(config.judge_key_env, ""),
            timeout=config.judge_timeout,
            retries=config.judge_retries,
            concurrency=config.judge_concurrency,
            max_tokens=config.judge_max_tokens,
            body=body,
        )
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
        code = secrets.token_hex(3) if self.config.judge_schema == "off" else None
        ask = "" if code is None else f'Begin the JSON object with "code": "{code}", then "reasons".'
        response_format = RESPONSE_FORMAT if code is None else None
        note = ask
        problem = ""
        for _ in range(2):  # one bounded second try
            try:
                reply = await complete_fitting(self.client, self.rubric, sections, note, response_format)
                if reply.finish_reason == "length":
                    raise VerdictError(f"the reply was cut at {PREFIX}judge_max_tokens {self.config.judge_max_tokens}")
                ratings, reasons = parse_verdict(reply.text, code)
                return ratings, self.client.redact(reasons)
            except VerdictError as error:
                problem = str(error)
                shown = reply.text
                note = f"{ask}\n(Your last reply could not be used: {problem}. Reply with the JSON object alone.)"
            except Unscored as error:
                if error.reason != "bad_response":
                    raise
                last = error
        if not problem:
            raise last
        hint = "" if code is not None or "JSON object" not in problem else _NO_SCHEMA
        problem, shown = self.client.redact(problem), self.client.redact(shown)
        raise Unscored("unparsable", f"{problem}{hint}: {_head(shown)}")

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self.client.aclose()
        if self.calibration is not None:
            await self.calibration.client.aclose()


_NO_SCHEMA = f" (a server that ignores response_format needs {PREFIX}judge_schema off)"


def _check_urls(config: Config) -> None:
    if config.judge_calibration_url and not config.judge_calibration_model:
        raise ConfigError(
            f"{PREFIX}judge_calibration_url needs the model's name: {PREFIX}judge_calibration_model NAME"
        )
    for url in (*config.judge_urls, *config.judge_calibration_urls):
        if re.match(r"https?://[^/]*@", url):
            raise ConfigError(
                f"{PREFIX}judge_url: a URL with a password in it would end up in logs; put the key in the environment "
                f"variable {config.judge_key_env}"
            )
        if not re.match(r"https?://", url):
            raise ConfigError(f"{PREFIX}judge_url, judge_calibration_url: {url!r} is no http(s):// base URL")


def _head(text: str, width: int = 120) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= width else text[: width - 3] + "...")
