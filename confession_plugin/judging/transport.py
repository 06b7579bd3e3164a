"""Connections to the judge's servers: the openai SDK's client over its own aiohttp transport, one for each event loop.

Retries, backoff, Retry-After, redirects, proxies and certificates are the SDK's.  One method is overridden, because
the SDK limits each read only: here a reply has a limit on its whole time and on its size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any
from urllib.request import getproxies

import aiohttp
import httpx2
import openai

_MOST_BYTES = 4 * 2**20
"""A verdict has a few kB; a decompressed reply of more than this is no verdict."""
_KEEP_ALIVE_S = 60.0


class Connections:
    """What one event loop has: the SDK's client with its connections, and the gate before them.

    Args:
        key: sent as ``Authorization: Bearer``.
        timeout: seconds one attempt may take, from connecting to the last byte.
        concurrency: calls under way at once, and connections kept open.
        headers: sent with every request.
        final: says of an error's status and body that the same request would fail again.
    """

    def __init__(
        self,
        key: str,
        timeout: float,
        concurrency: int,
        headers: Mapping[str, str],
        final: Callable[[int, bytes], bool],
    ) -> None:
        self.gate = asyncio.Semaphore(concurrency)
        self.client = openai.AsyncOpenAI(
            base_url="http://unused.invalid",  # every call names its server
            # The SDK insists on some key; servers without keys ignore it.
            api_key=key or "none",
            timeout=timeout,
            # Headers about this machine: nothing reads them here, and they cost a tenth of a call.
            default_headers={**_NO_PLATFORM_HEADERS, **headers},
            http_client=_LimitedClient(
                final,
                limits=httpx2.Limits(
                    max_connections=concurrency,
                    max_keepalive_connections=concurrency,
                    keepalive_expiry=_KEEP_ALIVE_S,
                ),
                mounts=_socks_mounts(),
            ),
        )
        self._lifetime: AsyncGenerator[None, None] | None = None

    async def opened(self) -> openai.AsyncOpenAI:
        """The client, which closes itself when `asyncio.run` closes this event loop."""
        if self._lifetime is None:
            self._lifetime = self._until_closed()
            await anext(self._lifetime)
        return self.client

    async def aclose(self) -> None:
        await self.client.close()

    async def _until_closed(self) -> AsyncGenerator[None, None]:
        # A generator, because asyncio.run closes those still open when its loop ends.
        try:
            yield
        finally:
            await self.aclose()


class _NoSocks(httpx2.AsyncBaseTransport):
    """In the place of a SOCKS proxy, which aiohttp would take for an HTTP proxy."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ProxyError("a SOCKS proxy cannot be used for the judge", request=request)


def _socks_mounts() -> dict[str, httpx2.AsyncBaseTransport]:
    # httpx still asks NO_PROXY first, whose rules are more special than a whole scheme's.
    proxies = getproxies()
    schemes = [scheme for scheme in ("http", "https", "all") if proxies.get(scheme, "").lower().startswith("socks")]
    return {f"{scheme}://": _NoSocks() for scheme in schemes}


class OversizedReply(Exception):
    """The server's reply is larger than any verdict."""


class _LimitedClient(openai.DefaultAioHttpClient):
    """`final` says of a failure's status and body that trying again cannot help, whatever the status."""

    def __init__(self, final: Callable[[int, bytes], bool], **settings: Any) -> None:
        super().__init__(**settings)
        self._final = final

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """The whole reply, within the request's timeout and `_MOST_BYTES`."""
        seconds = request.extensions["timeout"]["read"]
        try:
            return await asyncio.wait_for(self._whole_reply(request, options), seconds)
        except asyncio.TimeoutError:
            raise httpx2.ReadTimeout(f"no reply within {seconds:g} s", request=request) from None
        except httpx2.ConnectTimeout as error:
            # The SDK's transport gives this name to every lost connection; what it says tells them apart.
            if isinstance(error.__cause__, asyncio.TimeoutError):
                raise
            proxy = isinstance(error.__cause__, aiohttp.ClientProxyConnectionError)
            kind = httpx2.ProxyError if proxy else httpx2.ConnectError
            raise kind(str(error) or "the connection was lost", request=request) from error

    async def _whole_reply(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        response = await super().send(request, **{**options, "stream": True})
        try:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > _MOST_BYTES:
                    raise OversizedReply(f"a reply of more than {_MOST_BYTES} bytes")
        finally:
            await response.aclose()
        # Of a refusal the SDK reads Retry-After and the content type; of an answer nothing but the body.
        headers = () if response.is_success else response.headers.items()
        kept = [(name, value) for name, value in headers if name not in _ABOUT_THE_BODY]
        if response.is_error and self._final(response.status_code, bytes(content)):
            kept.append(("x-should-retry", "false"))  # the SDK obeys it as if the server had sent it
        whole = httpx2.Response(response.status_code, headers=kept, content=bytes(content), request=response.request)
        whole.history = response.history
        return whole


_NO_PLATFORM_HEADERS: Any = {
    f"X-Stainless-{name}": openai.Omit()
    for name in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
}

#: Headers that are no longer true of a body that was read and decompressed.
_ABOUT_THE_BODY = frozenset({"content-encoding", "content-length", "transfer-encoding"})
