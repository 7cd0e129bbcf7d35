"""Requests to destinations: httpx over aiohttp's connections, no redirects, no way into private networks."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import re
import socket
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from pipeline.codec.ip_address import parse_ip
from pipeline.destination import HttpRequest, HttpResponse, Misconfigured, Outcome, Rejected, Retry
from pipeline.sinks.transport import SessionTransport

_TIMEOUT = aiohttp.ClientTimeout(total=60.0, sock_connect=10.0, sock_read=15.0)
"""`total` is for one answer as a whole: a destination may not drip it."""
_HEADERS = {b"accept-encoding": b"identity", b"user-agent": b"hitrouter"}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_BODY_BYTES = 65_536
_PRIVATE = Misconfigured("the address belongs to a private network; set delivery.allow_private to allow it")

_TWO_CREDENTIALS = Misconfigured(
    "the address has a user in it, and a header Authorization is set; take one of them out"
)


def is_public(address: str) -> bool:
    """May a request go there? Private, loopback, link-local (metadata services) and reserved addresses may not.

    Nor may IPv6 addresses that only wrap such an address: mapped, compatible, 6to4, Teredo, NAT64. Raises ValueError when
    it is no address.
    """
    parsed = parse_ip(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        wrapped = _wrapped(parsed)
        if wrapped is not None:
            return is_public(str(wrapped))
    if any(parsed in network for network in _REFUSED if network.version == parsed.version):
        return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def _wrapped(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or address in _COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, 2.5.5.1; the unspecified and the loopback address, too
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's machine agent and DNS
        "192.0.0.0/24",  # IETF protocol assignments (RFC 6890); 192.0.0.192 is the metadata service of Oracle Cloud
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "64:ff9b:1::/48",  # local NAT64 (RFC 8215)
        "2001::/23",  # IETF protocol assignments (RFC 2928)
        "3fff::/20",  # documentation (RFC 9637)
        "fec0::/10",  # site-local (RFC 3879)
    )
)
"""Never a destination; `ipaddress` counts them as global, or did in some version of Python."""


def seconds_until(retry_after: str, now_seconds: float) -> str:
    """`Retry-After` in seconds, also where it is a date (RFC 9110, 10.2.3); "" when it is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return text
    try:
        return str(max(0, math.ceil(parsedate_to_datetime(text).timestamp() - now_seconds)))
    except (ValueError, OverflowError):  # the latter for a year of many digits
        return ""


class _PublicResolver(AbstractResolver):
    """Resolves once; the connection goes to the addresses that were checked."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(entry["host"]) for entry in found):
            raise _PrivateAddress(f"{host} is an address of a private network; set delivery.allow_private to allow it")
        return found

    async def close(self) -> None:
        await self._resolver.close()


class _PrivateAddress(OSError):
    pass


class HttpSink:
    """One connection's transport. Use within its event loop; `close` it there.

    httpx's transport without its client: what that adds (redirects, cookies, merging) is not wanted here, and costs as much
    again as the request.
    """

    def __init__(self, max_in_flight: int, allow_private: bool = False) -> None:
        self._allow_private = allow_private

        def session() -> aiohttp.ClientSession:
            resolver = None if allow_private else _PublicResolver()
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=max_in_flight, resolver=resolver),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=_TIMEOUT,
                auto_decompress=False,
                skip_auto_headers=("Content-Type",),
            )

        self._transport = SessionTransport(session)

    async def exchange(self, request: HttpRequest) -> HttpResponse | Outcome:
        """One attempt: the answer, or the outcome where none came. Never raises for what the network does."""
        try:
            if _CONTROL.search("\t".join((*request.headers, *request.headers.values()))):
                return Rejected("invalid_header", "a control character stands in what goes into a header")
            url, may_ask = _target(request.url)
            if not may_ask and not self._allow_private:
                return _PRIVATE
            own = {name.lower().encode(): value.encode() for name, value in request.headers.items()}
            if b"authorization" in own and url.userinfo:
                return _TWO_CREDENTIALS
            asked = httpx.Request(
                request.method,
                url,
                headers=[*{**_HEADERS, **own}.items()],
                stream=httpx.ByteStream(request.body),  # with `content` httpx would look into the headers first
            )
            answer = await self._transport.handle_async_request(asked)
            assert isinstance(answer.stream, httpx.AsyncByteStream)
            try:
                body = b""
                async for part in answer.stream:
                    body += part
                    if len(body) >= _BODY_BYTES:
                        break
            finally:
                await answer.stream.aclose()
            return HttpResponse(answer.status_code, _readable(answer.headers), body[:_BODY_BYTES])
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError):
            return Misconfigured("the address of the destination can't be asked; check the connection's settings")
        except httpx.HTTPError as error:
            if _is_private(error):
                return _PRIVATE
            return Retry(
                type(error.__cause__ or error).__name__
            )  # aiohttp's own name tells a certificate from a time-out
        except aiohttp.ClientError as error:
            # What httpx-aiohttp does not translate, such as an answer that is no HTTP. Only its name: it holds the request's headers.
            return Retry(type(error).__name__)
        except TimeoutError:
            return Retry("Timeout")
        except asyncio.CancelledError:
            # aiohttp's connector cancels look-ups when it is closed, and with them who waits: then nobody has cancelled us.
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            return Retry("Closed")

    async def close(self) -> None:
        """Close its connections."""
        await self._transport.aclose()


def _readable(headers: httpx.Headers) -> Mapping[str, str]:
    """With `retry-after` in seconds. The others are decoded when they are asked for, which few verdicts do."""
    if all(name.lower() != b"retry-after" for name, _ in headers.raw):
        return headers
    return {**headers, "retry-after": seconds_until(headers["retry-after"], time.time())}


@lru_cache(maxsize=1024)
def _target(url: str) -> tuple[httpx.URL, bool]:
    """The parsed address, and whether it is no private one as far as it can be seen without resolving a name."""
    parsed = httpx.URL(url)
    try:
        return parsed, is_public(parsed.host)
    except ValueError:
        return parsed, True  # a name: the resolver decides


def _is_private(error: BaseException | None) -> bool:
    seen: list[Any] = []
    while error is not None and error not in seen:
        if isinstance(error, _PrivateAddress) or isinstance(getattr(error, "os_error", None), _PrivateAddress):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
