"""An httpx transport on an aiohttp session.

httpx-aiohttp's own transport creates timeouts, cookies and contexts for each request, which doubles the cost of a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import aiohttp
import httpx
from httpx_aiohttp.transport import map_aiohttp_exceptions

_CLOSE_TIMEOUT_SECONDS = 2.0


class SessionTransport(httpx.AsyncBaseTransport):
    """Sends requests through one aiohttp session, which `session` creates in the event loop at the first request.

    The session must have timeouts set and decompression off. `proxy` is the proxy's address without credentials;
    `proxy_authorization` is the value of the header that holds them.
    """

    def __init__(
        self, session: Callable[[], aiohttp.ClientSession], proxy: str | None = None, proxy_authorization: str = ""
    ) -> None:
        self._make_session = session
        self._session: aiohttp.ClientSession | None = None
        self._proxy = proxy
        # As a header, because aiohttp's errors and warnings would show the address and `proxy_auth`.
        self._for_proxy = {"Proxy-Authorization": proxy_authorization} if proxy_authorization else {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, and return once the response's head has arrived. Raises the same errors as httpx-aiohttp."""
        if self._session is None:
            self._session = self._make_session()
        assert isinstance(request.stream, httpx.ByteStream)
        headers = {name.decode(): value.decode() for name, value in request.headers.raw}
        if request.url.scheme == "http":  # sent to the proxy itself, without CONNECT
            headers.update(self._for_proxy)
        with map_aiohttp_exceptions():
            response = await self._session.request(
                request.method,
                str(request.url),
                data=b"".join(request.stream),
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
                proxy_headers=self._for_proxy or None,
            )
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response), request=request)

    async def aclose(self) -> None:
        """Close the session. Does not wait for a receiver that has refused a request and does not read the rest of it."""
        if self._session is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._session.close(), _CLOSE_TIMEOUT_SECONDS)


class _Body(httpx.AsyncByteStream):
    """The response body, to be read once. Closes an HTTP connection whose response was not read completely."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    # Not an async generator: the event loop would track each one until it is closed.
    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with map_aiohttp_exceptions():
            part = await self._response.content.readany()
        if not part:
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        self._response.release()
