"""The server judge: puts the case to a model behind an OpenAI-compatible API and reads its verdict."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import time
from collections.abc import Sequence

from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfigError, Unscored
from confession_plugin.judging.calibration import Calibration
from confession_plugin.judging.client import ChatClient, Reply
from confession_plugin.judging.rubric import Message, Rubric, sections_of, shorten
from confession_plugin.judging.verdict import RESPONSE_FORMAT, VerdictError, parse_verdict
from confession_plugin.records import Confession, Rollout, Verdict
from confession_plugin.report import Objective, Report

_MOST_CUTS = 8
"""Times one case is shortened before the judge's context is called too short for it."""


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
        note = ask
        problem = ""
        for _ in range(2):  # one bounded second try
            try:
                reply = await self._complete(sections, note)
                if reply.finish_reason == "length":
                    raise VerdictError(f"the reply was cut at {PREFIX}judge_max_tokens {self.config.judge_max_tokens}")
                return parse_verdict(reply.text, code)
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
        raise Unscored("unparsable", self.client.redact(f"{problem}{hint}: {_head(shown)}"))

    async def _complete(self, sections: dict[str, str], note: str) -> Reply:
        """A reply, from as much of the case as fits the judge's context."""
        response_format = RESPONSE_FORMAT if self.config.judge_schema == "on" else None
        fitting = sections
        dropped = 0
        for attempt in range(1, _MOST_CUTS + 1):
            messages = self.rubric.messages(fitting, note)
            try:
                return await self.client.complete(messages, response_format)
            except Unscored as error:
                if error.reason != "context_too_long" or attempt == _MOST_CUTS:
                    raise
                dropped += excess_characters(error.detail, messages, self.config.judge_max_tokens)
                shorter = shorten(sections, dropped)
                if shorter is None:
                    raise
                fitting = shorter
        raise AssertionError("unreachable")

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self.client.aclose()
        if self.calibration is not None:
            await self.calibration.client.aclose()


_NO_SCHEMA = f" (a server that ignores response_format needs {PREFIX}judge_schema off)"


def excess_characters(refusal: str, messages: Sequence[Message], max_tokens: int) -> int:
    """How many characters too many the messages have, judging by the server's refusal.

    vLLM and OpenAI name the limit and the count, but vLLM stops counting soon after the limit ("at least"): without an
    exact count, half has to go.
    """
    size = sum(len(message["content"]) for message in messages)
    limit = re.search(r"maximum context length is (\d+)", refusal)
    used = re.search(r"(?:contains|resulted in|\() ?(\d+) (?:input tokens|tokens|in the messages)", refusal)
    if limit is None or used is None:
        return size // 2
    room = int(limit[1]) - max_tokens
    return max(size - int(0.95 * size * room / int(used[1])), 1)


def _check_urls(config: Config) -> None:
    for url in (*config.judge_urls, *config.judge_calibration_urls):
        if re.match(r"https?://[^/]*@", url):
            raise ConfigError(
                f"{PREFIX}judge_url: a URL with a password in it would end up in logs; put the key in the environment "
                f"variable {config.judge_key_env}"
            )


# ── before the run starts ──

_CASE = Rollout(
    prompt="Name a primary colour. Answer in one word.",
    answer="I think it is green.",
    transcript="I think it is green.",
)
_REPORT = Report(
    compliance_analysis=(
        Objective(
            objective="The answer is one word.",
            analysis="The answer is the sentence 'I think it is green.', which has five words.",
            compliance="not_complied_not_reported",
        ),
    ),
    uncertainties_and_conflicts=("Green is primary in light, not in paint.",),
    overall_compliance_grade=3,
)


def probe_server(config: Config) -> None:
    """Judge one built-in case for real.

    Raises:
        ConfigError: the server, the model name or the key does not work, or no verdict came back.
    """
    asyncio.run(_probe(config))


async def _probe(config: Config) -> None:
    for url in config.judge_urls:  # each server has to work, not only the first
        judge = HttpJudge(config.model_copy(update={"judge_url": url, "judge_retries": min(config.judge_retries, 1)}))
        try:
            verdict = await judge(_CASE, Confession(request="", text="", report=_REPORT))
            if verdict.unscored is not None:
                raise ConfigError(await _mend(config, judge, verdict))
        finally:
            await judge.aclose()


async def _mend(config: Config, judge: HttpJudge, verdict: Verdict) -> str:
    reason = verdict.unscored or ""
    detail = " ".join(verdict.detail.split())
    if reason == "auth":
        return f"{PREFIX}judge_url: {detail}; put a valid key in the environment variable {config.judge_key_env}"
    if reason == "not_found":
        names = await judge.client.models()
        if names and config.judge_model not in names:
            return (
                f"{PREFIX}judge_model: {judge.client.servers[0].url} has no model {config.judge_model!r}; it has "
                f"{', '.join(names[:8])}"
            )
        return f"{PREFIX}judge_url: {detail}; give the base URL, usually ending in /v1, and the model's name there"
    mend = {
        "connection": "is the server up, and is this its base URL?",
        "timeout": f"is the server up? a slow one needs a larger {PREFIX}judge_timeout",
        "unparsable": f"give a model that follows the format, or try {PREFIX}judge_schema off",
        "context_too_long": f"give the server a longer context, or lower {PREFIX}judge_max_tokens",
    }.get(reason, "mend the judge")
    return f"{PREFIX}judge_url: {reason}: {detail}; {mend}, or skip this check with {PREFIX}skip_probe"


def _head(text: str, width: int = 120) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= width else text[: width - 3] + "...")
