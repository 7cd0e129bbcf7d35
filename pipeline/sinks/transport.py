"""httpx's transport on aiohttp's session.

httpx-aiohttp's own makes time-outs, cookies and contexts anew for each request, which costs as much as the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import aiohttp
import httpx
from httpx_aiohttp.transport import map_aiohttp_exceptions

_CLOSE_SECONDS = 2.0


class SessionTransport(httpx.AsyncBaseTransport):
    """`session` makes the session, once, within the loop. It says how long all takes, and that nothing is decoded.

    `proxy` is the proxy's address without credentials, which are `proxy_authorization`.
    """

    def __init__(
        self, session: Callable[[], aiohttp.ClientSession], proxy: str | None = None, proxy_authorization: str = ""
    ) -> None:
        self._make_session = session
        self._session: aiohttp.ClientSession | None = None
        self._proxy = proxy
        # Not in the address, nor as aiohttp's `proxy_auth`: both would stand in texts of its errors and warnings.
        self._for_proxy = {"Proxy-Authorization": proxy_authorization} if proxy_authorization else {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send, and return as soon as the answer's head is there. Raises what httpx-aiohttp does."""
        if self._session is None:
            self._session = self._make_session()
        assert isinstance(request.stream, httpx.ByteStream)
        headers = {name.decode(): value.decode() for name, value in request.headers.raw}
        if request.url.scheme == "http":  # it goes to the proxy itself, and no CONNECT before it
            headers.update(self._for_proxy)
        with map_aiohttp_exceptions():
            answer = await self._session.request(
                request.method,
                str(request.url),
                data=b"".join(request.stream),
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
                proxy_headers=self._for_proxy or None,
            )
        return httpx.Response(answer.status, headers=answer.raw_headers, stream=_Body(answer), request=request)

    async def aclose(self) -> None:
        """Close the session; a receiver that does not read what it has refused is not waited for."""
        if self._session is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._session.close(), _CLOSE_SECONDS)


class _Body(httpx.AsyncByteStream):
    """The answer's body, to be read once; a connection whose answer was not read whole is closed and not kept."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    # No generator, which the loop would watch until it is closed.
    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with map_aiohttp_exceptions():
            part = await self._answer.content.readany()
        if not part:
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        self._answer.release()
