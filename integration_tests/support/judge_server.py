"""A chat-completions server on a real socket that can be slow, broken or hostile: the judge of the tests.

In a test:            with JudgeServer(behave) as server: ... server.url ... server.calls
As its own process:   with JudgeProcess() as judge: ... judge.url ... judge.kill() ... judge.start()
By hand:              python3 judge_server.py --delay 1      (prints its base URL)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from harness import die_with_parent

HONEST = {"objectives": "fully", "analysis": "fully", "uncertainties": "fully"}


@dataclass
class Call:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    raw: bytes
    number: int

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def text(self) -> str:
        """All messages' contents."""
        return "\n".join(message["content"] for message in self.body["messages"])

    @property
    def case(self) -> str:
        """What is judged: the same for a second request, which says what was wrong with the first reply."""
        return self.body["messages"][-1]["content"].partition("\n\n\n(Your last reply")[0]

    @property
    def code(self) -> str | None:
        """The code that a verdict without schema has to carry."""
        found = re.findall(r'"code": "(\w+)"', self.body["messages"][-1]["content"])
        return found[-1] if found else None


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    fault: str | None = None
    """reset: the connection, before the reply; half: close it within the body; cut: reset it within the body; drip: a
    byte now and then; hang: nothing."""


def says(content: str | None, finish_reason: str = "stop", **message: Any) -> Answer:
    """A chat completion."""
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    reply = {"id": "x", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]}
    return Answer(json.dumps(reply).encode())


def verdict(call: Call | None = None, reasons: str = "because", **ratings: str) -> Answer:
    """A chat completion that holds a verdict, with the call's code where it asks for one."""
    code = {"code": call.code} if call is not None and call.code else {}
    return says(json.dumps({**code, "reasons": reasons, **{**HONEST, **ratings}}))


def error(status: int, message: str = "broken", **headers: str) -> Answer:
    body = json.dumps({"error": {"message": message, "type": "error", "code": status}}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(body, status, {"Content-Type": "application/json", **named})


class JudgeServer:
    """Serves in a thread of its own; `behave` is an async function from a `Call` to an `Answer`."""

    def __init__(
        self,
        behave: Callable[[Call], Awaitable[Answer]] | None = None,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.behave = behave or _judge_all_honest
        self.port = port
        self.tls = tls
        self.calls: list[Call] = []
        self.in_flight = self.most_in_flight = self.open = self.opened = 0

    def __enter__(self) -> JudgeServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    async def _start(self) -> asyncio.Server:
        self._tasks: set[asyncio.Task[Any]] = set()
        return await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=4096, limit=2**24, ssl=self.tls)

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        self.opened += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first = await reader.readexactly(1)
        if first == b"\x16":  # TLS to a server that speaks none
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            return False
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        call = Call(head[0].split()[1], headers, raw, len(self.calls))
        self.calls.append(call)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = await self.behave(call)
            if answer.fault == "hang":
                await asyncio.sleep(3600)
        finally:
            self.in_flight -= 1
        if answer.fault in ("reset", "cut"):
            linger = struct.pack("ii", 1, 0)  # closing with it sends RST, as a killed server's kernel does
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if answer.fault == "reset":
            return False
        lines = [f"HTTP/1.1 {answer.status} Whatever", *(f"{name}: {value}" for name, value in answer.headers.items())]
        writer.write("\r\n".join([*lines, f"Content-Length: {len(answer.body)}", "", ""]).encode("latin-1"))
        if answer.fault in ("half", "cut"):
            writer.write(answer.body[: len(answer.body) // 2])
            await writer.drain()
            return False
        if answer.fault == "drip":
            for byte in answer.body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
            return True
        writer.write(answer.body)
        await writer.drain()
        return True


async def _judge_all_honest(call: Call) -> Answer:
    return verdict(call)


def varied(case: str) -> dict[str, str]:
    """Ratings that differ from case to case, so that a group's confessions have something to learn from."""
    labels = ("fully", "mostly", "partly", "not_at_all")
    return {name: labels[zlib.crc32(f"{name} {case}".encode()) % 4] for name in HONEST}


class JudgeProcess:
    """The server as a process of its own: it can be killed, and started again on its port."""

    def __init__(self) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> JudgeProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Returns when it serves."""
        command = [sys.executable, __file__, "--port", str(self.port), "--vary"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == self.url

    def kill(self) -> None:
        """SIGKILL: no goodbye, the kernel resets what was open."""
        self._process.kill()
        self._process.wait()


def _free_port() -> int:
    """A free port that stays free while nothing listens: the kernel gives outgoing connections higher ones."""
    for port in range(21_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port below 32000")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0, help="seconds every verdict takes")
    parser.add_argument("--slots", type=int, default=1 << 20, help="verdicts under way at once; others wait")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--vary", action="store_true", help="ratings differ from case to case")
    arguments = parser.parse_args()
    slots = asyncio.Semaphore(arguments.slots)

    async def behave(call: Call) -> Answer:
        async with slots:
            await asyncio.sleep(arguments.delay)
        server.calls.clear()
        return verdict(call, **varied(call.case)) if arguments.vary else verdict()

    server = JudgeServer(behave, arguments.port)
    with server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
