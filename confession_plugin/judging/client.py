"""Chat completions over one or more OpenAI-compatible servers, made for thousands of small concurrent calls.

`ChatClient.complete` returns a reply or raises `Unscored` with a short reason.  Retries, backoff and Retry-After are
the openai SDK's; this module adds the choice of the server, the limits, and error texts that hold no secret.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai

from confession_plugin.errors import Unscored
from confession_plugin.judging.perloop import PerLoop

logger = logging.getLogger(__name__)

#: The SDK has moved from httpx to httpx2, with the same names: whichever it uses.
_httpx: Any = sys.modules[openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]]


@dataclass(frozen=True)
class Reply:
    text: str
    finish_reason: str


@dataclass
class Server:
    """One base URL and what is known about it."""

    url: str
    in_flight: int = 0
    latency_s: float | None = None
    """Moving average; None before the first reply."""
    failures: int = 0
    """Calls in a row that failed in a way that another server might not."""
    rest_until: float = 0.0


class ChatClient:
    """Calls under a common limit, each on the server that will probably be done first.

    Args:
        urls: base URLs, e.g. ``http://judge:8000/v1``.
        key: the API key; it is never logged and never part of an error.
        timeout: seconds one attempt may take, from connecting to the last byte.
        retries: further attempts after the first, over all servers.
        concurrency: calls under way at once, and connections kept open, per event loop.
        body: further fields of the request, e.g. ``{"temperature": 0}``.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        *,
        key: str = "",
        timeout: float = 120.0,
        retries: int = 3,
        concurrency: int = 64,
        max_tokens: int = 2048,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        self.servers = [Server(url) for url in urls]
        self.retries = retries
        self.max_tokens = max_tokens
        self._key = key
        self._body: dict[str, Any] = {"model": model, **(body or {})}
        if "max_completion_tokens" not in self._body:
            self._body.setdefault("max_tokens", max_tokens)
        self._loops = PerLoop(lambda: _Connections(key, timeout, concurrency))

    async def complete(
        self, messages: Sequence[Mapping[str, str]], response_format: Mapping[str, Any] | None = None
    ) -> Reply:
        """One reply.

        Raises:
            Unscored: with the reason (see `explain`); all attempts are used up.
        """
        body = {**self._body, "messages": messages}
        if response_format is not None:
            body["response_format"] = response_format
        connections = self._loops.get()
        content = json.dumps(body).encode()
        # The attempts are shared out over the servers, at least one each.
        passes = len(self.servers)
        retries = max((self.retries + 1) // passes - 1, 0)
        tried: list[Server] = []
        async with connections.gate:
            while True:
                server = self._choose(tried)
                tried.append(server)
                try:
                    return await self._attempt(connections.client, server, content, retries)
                except Unscored as error:
                    if error.reason not in _ELSEWHERE or len(tried) == passes:
                        raise

    async def _attempt(self, client: openai.AsyncOpenAI, server: Server, body: bytes, retries: int) -> Reply:
        started = time.monotonic()
        server.in_flight += 1
        try:
            # Not client.chat.completions.create: turning each reply into its pydantic type costs more CPU than all
            # the rest of the call.
            response = await client.post(
                f"{server.url}/chat/completions",
                body=body,
                cast_to=_httpx.Response,
                options={"max_retries": retries},
            )
            reply = json.loads(response.content)
        except Exception as error:
            reason, detail = explain(error)
            if reason in _ELSEWHERE:
                server.failures += 1
                server.rest_until = time.monotonic() + min(2.0**server.failures, 30.0)
            # `from None`: the cause holds the request, and with it the key.
            raise self._failure(server, reason, detail) from None
        finally:
            server.in_flight -= 1
        took = time.monotonic() - started
        server.failures = 0
        server.latency_s = took if server.latency_s is None else 0.8 * server.latency_s + 0.2 * took
        return self._read(server, reply)

    def _read(self, server: Server, reply: Any) -> Reply:
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            text, finish_reason, refusal = message.get("content"), choice.get("finish_reason"), message.get("refusal")
        except (AttributeError, IndexError, KeyError, TypeError):
            raise self._failure(server, "bad_response", f"not a chat completion: {reply!r}") from None
        if refusal or finish_reason == "content_filter":
            raise self._failure(server, "refused", str(refusal or "content filter"))
        if isinstance(text, list):  # content parts
            text = "".join(part.get("text") or "" for part in text if isinstance(part, dict))
        return Reply(text if isinstance(text, str) else "", str(finish_reason or ""))

    def _failure(self, server: Server, reason: str, detail: str) -> Unscored:
        return Unscored(reason, f"{self.redact(server.url)}: {_line(self.redact(detail))}")

    def _choose(self, tried: Sequence[Server]) -> Server:
        """The untried server that will probably be done first; one that just failed only when all others did."""
        now = time.monotonic()
        known = [server.latency_s for server in self.servers if server.latency_s is not None]
        usual = min(known, default=1.0)

        def cost(server: Server) -> tuple[bool, float]:
            latency = usual if server.latency_s is None else server.latency_s
            return server.rest_until > now, (server.in_flight + 1) * latency

        return min((server for server in self.servers if server not in tried), key=cost)

    async def models(self) -> list[str]:
        """Names of the models the first server offers; empty when it does not say."""
        try:
            response = await self._loops.get().client.get(
                f"{self.servers[0].url}/models", cast_to=_httpx.Response, options={"timeout": 10.0, "max_retries": 0}
            )
            return [str(model["id"]) for model in json.loads(response.content)["data"]]
        except Exception:
            return []

    def redact(self, text: str) -> str:
        """The text without the API key, which some servers repeat.  Before any cut: half a key is not recognised."""
        return text.replace(self._key, "[key]") if self._key else text

    async def aclose(self) -> None:
        """Close this event loop's connections."""
        await self._loops.get().client.close()


class _Connections:
    """What one event loop has: the SDK's client, its connections, and the gate before them."""

    def __init__(self, key: str, timeout: float, concurrency: int) -> None:
        self.gate = asyncio.Semaphore(concurrency)
        self.client = _Client(
            base_url="http://unused.invalid",  # every call names its server
            # The SDK insists on some key; servers without keys ignore it.
            api_key=key or "none",
            timeout=timeout,
            http_client=_Transport(concurrency),
        )


class _Client(openai.AsyncOpenAI):
    """The SDK's client, without what costs it a fifth of a call: taking the same few URLs apart each time, and
    headers about this machine."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._prepared: dict[str, Any] = {}

    def _prepare_url(self, url: str) -> Any:
        if url not in self._prepared:
            self._prepared[url] = super()._prepare_url(url)
        return self._prepared[url]

    def platform_headers(self) -> dict[str, str]:
        return {}


class _Transport(openai.DefaultAsyncHttpxClient):
    """The SDK's HTTP client with aiohttp underneath: a third of the CPU time, and a limit on an attempt's whole time.

    (httpx limits each read only, so a server that sends a byte now and then would never time out.)
    """

    def __init__(self, connections: int) -> None:
        super().__init__()
        self._urls: dict[str, Any] = {}
        self._proxies: dict[str, str | None] = {}
        self._session: aiohttp.ClientSession | None = None
        self._lifetime: AsyncGenerator[aiohttp.ClientSession, None] | None = None
        self._connections = connections

    def build_request(self, method: str, url: Any, **parts: Any) -> Any:
        """The SDK hands over all there is to a request: headers of its own, no cookies, an absolute URL.

        Merging those with this client's, and parsing the one URL of a server each time, took a fifth of a call.
        """
        headers, content, timeout = parts.pop("headers"), parts.pop("content", None), parts.pop("timeout")
        if any(part is not None for part in parts.values()):  # not a request that this module makes
            request: Any = super().build_request(
                method, url, headers=headers, content=content, timeout=timeout, **parts
            )
            found = {
                "url": str(request.url),
                "content": request.content,
                "read_timeout": getattr(timeout, "read", timeout),
            }
            request.extensions |= found
            return request
        text = str(url)
        if text not in self._urls:
            self._urls[text] = _httpx.URL(url)
        # As a stream, the body adds no headers (aiohttp writes its own), and `send` finds it where it is put.
        extensions = {"url": text, "content": content, "read_timeout": getattr(timeout, "read", timeout)}
        stream = _httpx.ByteStream(content or b"")
        return _httpx.Request(method, self._urls[text], headers=headers, stream=stream, extensions=extensions)

    async def send(self, request: Any, **options: Any) -> Any:
        if self._session is None:
            self._lifetime = self._open()
            self._session = await anext(self._lifetime)
        sent = [(name, value) for name, value in request.headers.items() if name not in _OWN_HEADERS]
        timeout = aiohttp.ClientTimeout(total=request.extensions["read_timeout"])
        try:
            async with self._session.request(
                request.method,
                request.extensions["url"],
                data=request.extensions["content"],
                headers=sent,
                timeout=timeout,
                proxy=self._proxy(request),
            ) as reply:
                content = await reply.read()
                # Of a refusal the SDK reads Retry-After and the content type; of an answer nothing but the body.
                headers = () if reply.ok else reply.headers.items()
                kept = [(name, value) for name, value in headers if name.lower() != "content-encoding"]
                return _httpx.Response(reply.status, headers=kept, content=content, request=request)
        except asyncio.TimeoutError as error:
            raise _httpx.ReadTimeout(f"no reply within {timeout.total:g} s", request=request) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _httpx.ConnectError(str(error) or type(error).__name__, request=request) from error

    async def _open(self) -> AsyncGenerator[aiohttp.ClientSession, None]:
        # A generator, because asyncio.run closes those still open when its loop ends, and the session with them.
        connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=60)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield session

    def _proxy(self, request: Any) -> str | None:
        """The proxy that the environment names for this server; aiohttp would look it up in a thread each call."""
        key = request.extensions["url"]
        if key not in self._proxies:
            url = request.url
            bypassed = urllib.request.proxy_bypass(f"{url.host}:{url.port}" if url.port else url.host)
            self._proxies[key] = None if bypassed else urllib.request.getproxies_environment().get(url.scheme)
        return self._proxies[key]

    async def aclose(self) -> None:
        if self._lifetime is not None:
            await self._lifetime.aclose()
            self._lifetime = self._session = None
        await super().aclose()


_OWN_HEADERS = frozenset({"host", "content-length", "accept-encoding", "connection"})

#: Failures that another server may not have.
_ELSEWHERE = frozenset({"timeout", "connection", "rate_limited", "http_5xx"})

_TOO_LONG = re.compile(
    r"context[ _]length|context[ _]window|maximum context|max_model_len|prompt is too long|too many (input )?tokens|"
    r"longer than the maximum|input.{0,40}(too long|exceed)",
    re.IGNORECASE,
)


def explain(error: Exception) -> tuple[str, str]:
    """A short label and the details of anything the SDK can raise."""
    if isinstance(error, openai.APITimeoutError):
        return "timeout", str(error.__cause__ or error)
    if isinstance(error, openai.APIConnectionError):
        return "connection", str(error.__cause__ or error)
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        detail = f"HTTP {status}: {_message(error)}"
        if status in (401, 403):
            return "auth", detail
        if status == 404:
            return "not_found", detail
        if status == 429:
            return "rate_limited", detail
        if status >= 500:
            return "http_5xx", detail
        if status in (400, 413, 422) and _TOO_LONG.search(detail):
            return "context_too_long", detail
        return f"http_{status}", detail
    if isinstance(error, (openai.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError)):
        return "bad_response", f"not JSON: {error}"
    raise error


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        message = inner.get("message") if isinstance(inner, dict) else inner
        return str(message or body)
    return str(body or error.message)


def _line(text: str, width: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."
