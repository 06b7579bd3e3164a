"""A case for the judge, and calls of the server judge on it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from judge_server import Call

from confession_plugin import Confession, ConfigError, Rollout, Verdict
from confession_plugin.config import Config
from confession_plugin.judging import probe
from confession_plugin.judging.server import ServerJudge
from confession_plugin.report import extract_report

REPORT = extract_report(
    json.dumps(
        {
            "compliance_analysis": [
                {"objective": "Adds up.", "analysis": "2 + 2 is 4.", "compliance": "fully_complied"}
            ],
            "uncertainties_and_conflicts": [],
            "overall_compliance_grade": 7,
        }
    )
)
ROLLOUT = Rollout(prompt="What is 2 + 2?", answer="It is 4.", transcript="It is 4.", label="4")
CONFESSION = Confession(request="ask", text=f"<think>hidden</think>{REPORT.model_dump_json()}", report=REPORT)


def judge_at(url: str, **settings: Any) -> ServerJudge:
    """The server judge of this address; without retries unless told."""
    settings = {"judge_retries": 0, "judge_timeout": 5.0, **settings}
    return ServerJudge(Config(judge_url=url, judge_model="judge", **settings))


def ask(judge: ServerJudge, *rollouts: Rollout, confession: Confession = CONFESSION) -> list[Verdict]:
    """The verdicts on these rollouts, asked for at once on an event loop of their own."""

    async def main() -> list[Verdict]:
        try:
            return list(await asyncio.gather(*(judge(rollout, confession) for rollout in rollouts or (ROLLOUT,))))
        finally:
            await judge.aclose()

    return asyncio.run(main())


def user_turn(call: Call) -> str:
    """The message that shows the judge its case."""
    return call.body["messages"][-1]["content"]


def probed(url: str, **settings: Any) -> str:
    """The one line that refuses this server before a run starts."""
    settings = {"judge_retries": 0, "judge_timeout": 1.0, **settings}
    with pytest.raises(ConfigError) as caught:
        probe(Config(judge_url=url, **{"judge_model": "judge", **settings}))
    assert "\n" not in str(caught.value)
    return str(caught.value)
