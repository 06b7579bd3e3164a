"""CPU time one judgment costs the rollout worker, beside a bare aiohttp loop that sends and reads the same bytes.

    python3 benchmarks/judge_overhead.py

The server is a process of its own and answers at once; the rounds alternate inside one run, and each way's best
round counts.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import openai
from judge_load import CONFESSION, judge_at, server
from rich.console import Console
from rich.table import Table

from confession_plugin.judging.preflight import CASE
from confession_plugin.judging.rubric import sections_of
from confession_plugin.judging.server import ServerJudge
from confession_plugin.judging.verdict import RESPONSE_FORMAT

CALLS, AT_ONCE, ROUNDS = 250, 64, 20
WORDS = 1500
"""Length of the answer: a page or three."""


async def cpu_seconds(call: Callable[[], Awaitable[Any]]) -> float:
    """CPU seconds of this process a call, over many concurrent calls."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            await call()

    started = time.process_time()
    await asyncio.gather(*(one() for _ in range(CALLS)))
    return (time.process_time() - started) / CALLS


async def measure(url: str) -> dict[str, float]:
    answer = "It depends, as so often, on what one means. " * (WORDS // 9)
    rollout = replace(CASE, answer=answer, transcript=answer)
    judge = judge_at(url)
    assert isinstance(judge, ServerJudge)
    messages = judge.rubric.messages(sections_of(rollout, CONFESSION))
    body: dict[str, Any] = {
        "model": "judge",
        "max_tokens": 2048,
        "messages": messages,
        "response_format": RESPONSE_FORMAT,
    }
    sdk = openai.AsyncOpenAI(base_url=url, api_key="none")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session:

        async def bare() -> Any:
            async with session.post(f"{url}/chat/completions", json=body) as reply:
                return json.loads((await reply.json())["choices"][0]["message"]["content"])

        async def stock() -> Any:
            reply = await sdk.chat.completions.create(**body)
            return json.loads(reply.choices[0].message.content or "")

        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "bare aiohttp": bare,
            "our client (SDK, retries, least-loaded)": lambda: judge.client.complete(messages, RESPONSE_FORMAT),
            "the whole judgment (cleaning, fencing, client, verdict)": lambda: judge(rollout, CONFESSION),
            "for comparison: the SDK as it comes": stock,
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(ROUNDS):
            for name, call in ways.items():
                best[name] = min(best[name], await cpu_seconds(call))
    await sdk.close()
    await judge.aclose()
    return best


def main() -> None:
    with server(0.0) as (url, _):
        best = asyncio.run(measure(url))
    table = Table(title=f"CPU time of a judgment, {WORDS} words of answer (best of {ROUNDS} rounds of {CALLS})")
    for heading in ("way", "ms a call", "x bare aiohttp"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, seconds in best.items():
        table.add_row(name, f"{seconds * 1000:.2f}", f"{seconds / best['bare aiohttp']:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
