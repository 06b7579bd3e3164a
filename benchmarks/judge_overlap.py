"""Judging overlaps generation: 64 rollouts from a real vLLM engine, their confessions judged by a server of 1 s.

    python3 benchmarks/judge_overlap.py

The host's executor, a tiny model, the judge's server in a process of its own.  The same rollouts once with a judge
that answers at once and once with one that takes a second; the rounds alternate and each way's best counts.  The
goal: no more than 1.3 s above generation alone, where judging one after the other would cost 64 s.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "integration_tests" / "support"), str(ROOT / "benchmarks")]

from engine import CONFIG, MAX_LEN, Engine, params, single_turn  # noqa: E402
from harness import build_tiny  # noqa: E402
from judge_load import server  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from confession_plugin.openrlhf.executor import ConfessingExecutor  # noqa: E402
from confession_plugin.openrlhf.ticket import Ticket, asking  # noqa: E402
from confession_plugin.plugins import configured  # noqa: E402

ROLLOUTS, ROUNDS, GOAL_S = 64, 3, 1.3


def wall_seconds(engine: Engine, tokenizer: Any, judge_url: str) -> float:
    """Wall time of 64 rollouts, from the first prompt to the last verdict."""
    config = CONFIG.model_copy(
        update={
            "judge_url": judge_url,
            "judge_model": "judge",
            "skip_probe": True,
            "plugins": (str(ROOT / "integration_tests" / "support" / "worlds" / "any_report.py"),),
        }
    )
    executor = ConfessingExecutor(single_turn(engine), config, configured(config))

    async def rollout(number: int) -> Any:
        sampling = params()
        with asking(Ticket(step=1, group=number), sampling):
            return await executor.execute(
                prompt=f"<|im_start|>user\nWhat is 1 + {number}?<|im_end|>\n<|im_start|>assistant\n",
                label="3",
                sampling_params=sampling,
                max_length=MAX_LEN,
                hf_tokenizer=tokenizer,
                llm_engine=engine.actor,
            )

    async def all_of_them() -> float:
        started = time.perf_counter()
        responses = await asyncio.gather(*(asyncio.create_task(rollout(number)) for number in range(ROLLOUTS)))
        took = time.perf_counter() - started
        assert all(response["confession"].numbers["scored"] for response in responses)
        return took

    took: float = engine.run(all_of_them())
    return took


def main() -> None:
    os.environ["RAY_ADDRESS"] = "local"  # the host asks Ray for its address unless it is known
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder, server(0.0) as (quick, _), server(1.0) as (slow, _):
        tiny = build_tiny(Path(folder))
        engine = Engine(tiny)
        tokenizer = AutoTokenizer.from_pretrained(tiny.model)
        best = {quick: float("inf"), slow: float("inf")}
        wall_seconds(engine, tokenizer, quick)  # warms the engine up
        for _ in range(ROUNDS):
            for url in best:
                best[url] = min(best[url], wall_seconds(engine, tokenizer, url))
        engine.close()
    table = Table(title=f"{ROLLOUTS} rollouts with confessions (best of {ROUNDS})")
    for heading in ("judge", "wall seconds", "above generation"):
        table.add_column(heading, justify="left" if heading == "judge" else "right")
    above = best[slow] - best[quick]
    table.add_row("answers at once", f"{best[quick]:.2f}", "")
    table.add_row("takes 1 s", f"{best[slow]:.2f}", f"{above:+.2f} s (goal: {GOAL_S} s at most)")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
