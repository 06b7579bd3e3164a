"""Chat completions over one or more OpenAI-compatible servers, made for thousands of small concurrent calls.

`ChatClient.complete` returns a reply or raises `Unscored` with a short reason.  Retries, backoff and Retry-After are
the openai SDK's; this module adds the choice of the server, the limits, and error texts that hold no secret.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai

from confession_plugin.errors import Unscored
from confession_plugin.judging.endpoints import Endpoint
from confession_plugin.judging.per_loop import PerLoop
from confession_plugin.judging.redaction import Redactor, one_line
from confession_plugin.judging.refusals import (
    Completion,
    Sent,
    TooLong,
    advice,
    failure_of,
    is_too_long,
    read_completion,
)
from confession_plugin.judging.transport import Connections
from confession_plugin.reasons import Reason

_LONGEST_REST_S = 30.0


@dataclass(eq=False)
class Server:
    """One base URL and what is known about it."""

    endpoint: Endpoint
    name: str
    """Its base URL as messages show it."""
    in_flight: int = 0
    latency_s: float | None = None
    """Moving average over verdicts; None before the first.  A failure says nothing about how long a verdict takes."""
    failures: int = 0
    """Calls since the last verdict that ended without one."""
    rest_until: float = 0.0
    dropped: int = 0
    """Replies to messages that it had read in part only."""

    def failed(self) -> None:
        """Others go first for a while, the longer the more often it failed."""
        self.failures += 1
        self.rest_until = time.monotonic() + min(2.0 ** min(self.failures, 10), _LONGEST_REST_S)

    def judged(self, seconds: float) -> None:
        self.failures, self.rest_until = 0, 0.0
        self.latency_s = seconds if self.latency_s is None else 0.8 * self.latency_s + 0.2 * seconds


@dataclass(frozen=True)
class Reply:
    """A completion, and who gave it: say by `ChatClient.accept` or `reject` whether it could be used."""

    completion: Completion
    server: Server
    seconds: float

    @property
    def text(self) -> str:
        return self.completion.text


@dataclass(frozen=True)
class _Request:
    content: bytes
    sent: Sent


@dataclass
class ChatClient:
    """Calls under a common limit, each on the server that will probably be done first.

    Args:
        urls: base URLs, e.g. ``http://judge:8000/v1``.
        key: the API key; it is never logged and never part of an error.
        timeout: seconds one attempt may take, from connecting to the last byte.
        retries: further attempts after the first, over all servers.
        concurrency: calls under way at once, and connections kept open, per event loop.
        body: further fields of the request, e.g. ``{"temperature": 0}``.
        secrets: further texts that no error may repeat.
    """

    urls: Sequence[str]
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    retries: int = 3
    concurrency: int = 64
    max_tokens: int = 2048
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    secrets: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        endpoints = [Endpoint.of(url) for url in self.urls]
        in_urls: set[str] = set().union(*(endpoint.secrets for endpoint in endpoints))
        self.redact = Redactor({self.key, *self.secrets, *in_urls})
        self.servers = [Server(endpoint, self.redact(endpoint.base)) for endpoint in endpoints]
        if any(self.redact(endpoint.completions) != endpoint.completions for endpoint in endpoints):
            logging.getLogger("httpx2").addFilter(_WithoutSecrets(self.redact))
        self._body: dict[str, Any] = {"model": self.model, **self.body}
        if "max_completion_tokens" not in self._body:
            self._body.setdefault("max_tokens", self.max_tokens)
        # Azure takes the key in a header of its own, where the URL names a version of the API.
        headers = {"api-key": self.key} if self.key and any("api-version=" in url for url in self.urls) else {}
        self._loops = PerLoop(lambda: Connections(self.key, self.timeout, self.concurrency, headers, is_too_long))

    async def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        response_format: Mapping[str, Any] | None = None,
        avoid: Sequence[Server] = (),
    ) -> Reply:
        """One reply; from a server in `avoid` only where all others failed.

        Raises:
            Unscored: with the reason (see `refusals`); all attempts are used up.
        """
        body = {**self._body, "messages": messages}
        if response_format is not None:
            body["response_format"] = response_format
        request = _Request(json.dumps(body).encode(), Sent(self.max_tokens, self._body, response_format is not None))
        connections = self._connections()
        # The attempts are shared out over the servers, at least one each.
        passes = len(self.servers)
        retries = max((self.retries + 1) // passes - 1, 0)
        tried: list[Server] = []
        async with connections.gate:
            client = await connections.opened()
            while True:
                server = self._choose(tried, avoid)
                tried.append(server)
                try:
                    return await self._attempt(client, server, request, retries)
                except TooLong:
                    raise
                except Unscored:
                    if len(tried) == passes:
                        raise

    def accept(self, reply: Reply) -> None:
        """The reply held what was asked for."""
        reply.server.judged(reply.seconds)

    def reject(self, reply: Reply) -> None:
        """The reply could not be used."""
        reply.server.failed()

    async def _attempt(self, client: openai.AsyncOpenAI, server: Server, request: _Request, retries: int) -> Reply:
        started = time.monotonic()
        server.in_flight += 1
        redirected_to = ""
        try:
            # Not client.chat.completions.create: turning each reply into its pydantic type costs more CPU than all
            # the rest of the call.
            response = await client.post(
                server.endpoint.completions,
                content=request.content,
                cast_to=httpx2.Response,
                options={"max_retries": retries, "headers": {"Content-Type": "application/json"}},
            )
            redirected_to = self.redact(_redirected_to(response))
            return Reply(read_completion(response.content, self.redact), server, time.monotonic() - started)
        except Exception as error:
            failure = failure_of(error, self.redact)
            if isinstance(error, openai.APIStatusError):
                redirected_to = self.redact(_redirected_to(error.response))
            if failure.reason != Reason.CONTEXT_TOO_LONG:  # short cases fit
                server.failed()
            # `from None`: the cause holds the request, and with it the key.
            raise self._named(
                server, failure, advice(failure, request.sent, server.endpoint.base, redirected_to)
            ) from None
        finally:
            server.in_flight -= 1

    def _connections(self) -> Connections:
        try:
            return self._loops.get()
        except Exception as error:  # the environment's proxies or certificates are no such thing
            failure = failure_of(error, self.redact)
            sent = Sent(self.max_tokens, self._body, False)
            raise self._named(self.servers[0], failure, advice(failure, sent, "")) from None

    def _named(self, server: Server, failure: Unscored, help: str) -> Unscored:
        """The failure with the server's name before it and the advice behind it."""
        detail = f"{server.name}: {one_line(self.redact(failure.detail))}" + (f"; {help}" if help else "")
        if isinstance(failure, TooLong):
            return TooLong(detail, failure.refusal)
        return Unscored(failure.reason, detail)

    def _choose(self, tried: Sequence[Server], avoid: Sequence[Server] = ()) -> Server:
        """The untried server that will probably be done first; one that just failed only when all others did."""
        now = time.monotonic()
        known = [server.latency_s for server in self.servers if server.latency_s is not None]
        usual = min(known, default=1.0)

        def cost(server: Server) -> tuple[bool, bool, float]:
            latency = usual if server.latency_s is None else server.latency_s
            return server in avoid, server.rest_until > now, (server.in_flight + 1) * latency

        return min((server for server in self.servers if server not in tried), key=cost)

    async def models(self) -> list[str]:
        """Names of the models the first server offers; empty when it does not say."""
        try:
            client = await self._loops.get().opened()
            response = await client.get(
                self.servers[0].endpoint.models,
                cast_to=httpx2.Response,
                options={"timeout": 10.0, "max_retries": 0},
            )
            return [one_line(self.redact(str(model["id"])), 80) for model in json.loads(response.content)["data"]]
        except Exception:
            return []

    async def aclose(self) -> None:
        """Close this event loop's connections."""
        connections = self._loops.pop()
        if connections is not None:
            await connections.aclose()


def _redirected_to(response: httpx2.Response) -> str:
    """Where a redirect led to; the base URL that should have been given, without its query."""
    if not response.history:
        return ""
    return one_line(str(response.url).partition("?")[0].removesuffix("/chat/completions"), 200)


class _WithoutSecrets(logging.Filter):
    """httpx logs every request's URL at level INFO, and with it a key in the query."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self.redact = redact

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.redact(record.getMessage()), ()
        return True
