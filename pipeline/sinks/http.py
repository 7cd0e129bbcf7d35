"""Requests to destinations: httpx over aiohttp's connections, no redirects, no way into private networks."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from httpx_aiohttp import AiohttpTransport

from pipeline.destination import HttpRequest, Misconfigured, Outcome, Rejected, Retry, judge_status

_TIMEOUT_SECONDS = 15.0
_PRIVATE = Misconfigured("the address belongs to a private network; set allow_private in the settings to allow it")


def is_public(address: str) -> bool:
    """May a request go there? Private, loopback, link-local (metadata services) and reserved addresses may not."""
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_global) and not parsed.is_multicast


class _PublicResolver(AbstractResolver):
    """Resolves once; the connection goes to the addresses that were checked."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(entry["host"]) for entry in found):
            raise _PrivateAddress(f"{host} is an address of a private network; set allow_private to allow it")
        return found

    async def close(self) -> None:
        await self._resolver.close()


class _PrivateAddress(OSError):
    pass


class HttpSink:
    """One connection's client. Use within its event loop; `close` it there."""

    def __init__(self, max_in_flight: int, allow_private: bool = False) -> None:
        self._allow_private = allow_private

        def session() -> aiohttp.ClientSession:
            resolver = None if allow_private else _PublicResolver()
            connector = aiohttp.TCPConnector(limit=max_in_flight, resolver=resolver)
            return aiohttp.ClientSession(connector=connector, auto_decompress=True)

        self._client = httpx.AsyncClient(
            transport=AiohttpTransport(client=session), timeout=_TIMEOUT_SECONDS, follow_redirects=False
        )

    async def send(self, request: HttpRequest) -> Outcome:
        """One attempt; never raises for what the network or the destination does."""
        if not self._allow_private and not _may_ask(request.url):
            return _PRIVATE
        try:
            answer = await self._client.request(
                request.method, request.url, content=request.body, headers=dict(request.headers)
            )
        except httpx.HTTPError as error:
            if _is_private(error):
                return _PRIVATE
            return Retry(type(error).__name__)
        except (httpx.InvalidURL, UnicodeError) as error:
            return Rejected("invalid_url", str(error))
        return judge_status(answer.status_code, answer.headers.get("retry-after"))

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()


def _may_ask(url: str) -> bool:
    try:
        return is_public(httpx.URL(url).host)
    except ValueError:
        return True  # a name: the resolver decides


def _is_private(error: BaseException | None) -> bool:
    seen: list[Any] = []
    while error is not None and error not in seen:
        if isinstance(error, _PrivateAddress) or isinstance(getattr(error, "os_error", None), _PrivateAddress):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
