"""How the server judge behaves under load: concurrency, connections, memory, unequal servers.

    python3 benchmarks/judge_load.py

Real sockets, the judge's server in processes of its own.  Every number is a ratio or a count inside this one run.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from confession_plugin.config import Config
from confession_plugin.judging import Judge, load_judge
from confession_plugin.judging.preflight import CASE, REPORT
from confession_plugin.records import Confession

SERVER = Path(__file__).parent.parent / "integration_tests" / "support" / "judge_server.py"
CONFESSION = Confession("", "", report=REPORT)


@contextmanager
def server(delay: float, slots: int = 1 << 20) -> Iterator[tuple[str, int]]:
    """A judge that takes `delay` seconds for each of `slots` verdicts at once; gives its base URL and process id."""
    process = subprocess.Popen(
        [sys.executable, str(SERVER), "--delay", str(delay), "--slots", str(slots)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.wait()


def judge_at(url: str, **settings: object) -> Judge:
    judge = load_judge(Config(judge_url=url, **{"judge_model": "judge", **settings}))  # type: ignore[arg-type]
    assert judge is not None
    return judge


def seconds(judge: Judge, calls: int) -> float:
    """Wall time of this many judgments at once, all of which must be scored."""

    async def main() -> float:
        await judge(CASE, CONFESSION)  # connections and caches
        started = time.perf_counter()
        verdicts = await asyncio.gather(*(judge(CASE, CONFESSION) for _ in range(calls)))
        assert all(verdict.scored for verdict in verdicts), verdicts[0]
        return time.perf_counter() - started

    return asyncio.run(main())


def sockets_to(port: int) -> int:
    """This process's open connections to a port, as the kernel counts them."""
    mine = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor of this listing is gone by now
            mine.add(os.readlink(link))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(f"socket:[{row[9]}]" in mine and int(row[2].rpartition(":")[2], 16) == port for row in rows)


def memory_mb() -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def thousand_at_once(url: str) -> tuple[int, list[float]]:
    """Most connections open during 1000 concurrent judgments, and memory after each of five such rounds."""
    judge = judge_at(url, judge_concurrency=64)
    port = int(url.split(":")[2].partition("/")[0])

    async def main() -> tuple[int, list[float]]:
        most, memory = 0, []
        for _ in range(5):
            calls = asyncio.gather(*(judge(CASE, CONFESSION) for _ in range(1000)))
            while not calls.done():
                most = max(most, sockets_to(port))
                await asyncio.sleep(0.1)
            assert all(verdict.scored for verdict in calls.result())
            memory.append(memory_mb())
        return most, memory

    return asyncio.run(main())


def main() -> None:
    table = Table(title="The server judge under load")
    for heading in ("what", "measured", "meaning"):
        table.add_column(heading)

    with server(1.0) as (url, _):
        took = seconds(judge_at(url), 64)
    table.add_row("64 judgments by a judge of 1 s", f"{took:.2f} x one call", "1 is ideal, 64 is one after the other")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "judge.py"
        file.write_text("import time\n\n\ndef judge(rollout, confession):\n    time.sleep(1)\n    return 1.0\n")
        took = seconds(judge_at(str(file)), 64)
    table.add_row("64 judgments by a sync function of 1 s", f"{took:.2f} x one call", "threads: the loop stays free")

    with server(0.02) as (url, _):
        most, memory = thousand_at_once(url)
    table.add_row("1000 at once, limit 64", f"{most} connections", "at most 64")
    grown = f"{memory[0]:.0f} MB, then +{memory[-1] - memory[0]:.1f} MB in 4 more rounds"
    table.add_row("memory over 5 rounds of 1000", grown, "flat")

    # As a model's server works: so many verdicts at once, and the others wait their turn there.
    with server(0.1, slots=16) as (fast, _), server(1.0, slots=16) as (slow, _):
        rates = {
            urls: calls / seconds(judge_at(urls, judge_concurrency=64), calls)
            for urls, calls in ((fast, 1500), (slow, 150), (f"{fast},{slow}", 1500))
        }
    both = rates.pop(f"{fast},{slow}")
    table.add_row(
        "two servers, one 10x slower",
        f"{both / sum(rates.values()):.2f} x the sum of both",
        f"at least 0.8; the fast one alone is {rates[fast] / sum(rates.values()):.2f}",
    )
    Console(width=140).print(table)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    main()
