"""Requests to destinations: httpx over aiohttp's connections, no redirects, no way into private networks."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver

from pipeline.codec.public_address import is_public
from pipeline.destination import HttpRequest, HttpResponse, Misconfigured, Outcome, Rejected, Retry
from pipeline.sinks.address_guard import ProxiedNames, PublicResolver, is_refused
from pipeline.sinks.proxies import Proxies, Proxy, UnfitProxy
from pipeline.sinks.transport import SessionTransport

logger = logging.getLogger("hitrouter.sinks.http")

_TIMEOUT = aiohttp.ClientTimeout(total=60.0, sock_connect=10.0, sock_read=15.0)
"""`total` is for one answer as a whole: a destination may not drip it."""
_HEADERS = {b"accept-encoding": b"identity", b"user-agent": b"hitrouter"}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_BODY_BYTES = 65_536
_LATER = frozenset({408, 425, 429})
_PRIVATE = Misconfigured(
    "the address belongs to a private network; set delivery.allow_private to allow it", is_answer=False
)
_TWO_CREDENTIALS = Misconfigured(
    "the address has a user in it, and a header Authorization is set; take one of them out", is_answer=False
)
_UNFIT_ADDRESS = Misconfigured(
    "the address of the destination can't be asked; check the connection's settings", is_answer=False
)


def seconds_until(retry_after: str, now_seconds: float) -> str:
    """`Retry-After` in seconds, also where it is a date (RFC 9110, 10.2.3); "" when it is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return text
    try:
        return str(max(0, math.ceil(parsedate_to_datetime(text).timestamp() - now_seconds)))
    except (ValueError, OverflowError):  # the latter for a year of many digits
        return ""


class HttpSink:
    """One connection's transport. Use within its event loop; `close` it there.

    httpx's transport without its client: what that adds (redirects, cookies, merging) is not wanted here, and costs as much
    again as the request.
    """

    def __init__(self, max_in_flight: int, allow_private: bool = False, proxies: Proxies | None = None) -> None:
        self._max_in_flight = max_in_flight
        self._allow_private = allow_private
        self._proxies = Proxies.from_environment() if proxies is None else proxies
        self._proxied_names = ProxiedNames()
        self._direct = SessionTransport(partial(self._session, None if allow_private else PublicResolver))
        self._proxied: dict[Proxy, SessionTransport] = {}
        """Their sessions resolve the proxy's name only, which comes from the operator and may be private."""

    async def exchange(self, request: HttpRequest) -> HttpResponse | Outcome:
        """One attempt: the answer, or the outcome where none came. Never raises for what the network does."""
        try:
            if _CONTROL.search("\t".join((*request.headers, *request.headers.values()))):
                return Rejected("invalid_header", "a control character stands in what goes into a header")
            url, may_ask = _target(request.url)
            if not may_ask and not self._allow_private:
                return _PRIVATE
            proxy = self._proxy_of(url) if self._proxies else None
            if proxy is not None and not self._allow_private and await self._proxied_names.is_private(url):
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
            transport = self._direct if proxy is None else self._transport_of(proxy)
            answer = await transport.handle_async_request(asked)
            assert isinstance(answer.stream, httpx.AsyncByteStream)
            try:
                body = b""
                async for part in answer.stream:
                    body += part
                    if len(body) >= _BODY_BYTES:
                        break
            finally:
                await answer.stream.aclose()
            if answer.status_code == 407 and proxy is not None and url.scheme == "http":
                return _refused_by_proxy(407)
            return HttpResponse(answer.status_code, _readable(answer.headers), body[:_BODY_BYTES])
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError):
            return _UNFIT_ADDRESS
        except UnfitProxy as error:
            return Misconfigured(str(error), is_answer=False)
        except httpx.ProxyError as error:
            # Only the status or the name: the error holds the proxy's credentials.
            if isinstance(error.__cause__, aiohttp.ClientHttpProxyError):
                return _refused_by_proxy(error.__cause__.status)
            return Retry(type(error.__cause__).__name__)
        except httpx.HTTPError as error:
            if is_refused(error):
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
        for transport in (self._direct, *self._proxied.values()):
            await transport.aclose()

    def _proxy_of(self, url: httpx.URL) -> Proxy | None:
        return self._proxies.of(url.scheme, url.raw_host.decode("ascii"), url.port)

    def _transport_of(self, proxy: Proxy) -> SessionTransport:
        if proxy not in self._proxied:
            logger.info("requests go through a proxy: variable=%s proxy=%s", proxy.variable, proxy.url)
            self._proxied[proxy] = SessionTransport(partial(self._session, None), proxy.url, proxy.authorization)
        return self._proxied[proxy]

    def _session(self, resolver: Callable[[], AbstractResolver] | None) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._max_in_flight, resolver=None if resolver is None else resolver()
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_TIMEOUT,
            auto_decompress=False,
            skip_auto_headers=("Content-Type",),
        )


def _refused_by_proxy(status: int) -> Retry | Misconfigured:
    """The outcome where a proxy lets nothing pass. It has not judged the hit, so no hit becomes a dead letter for it."""
    if 400 <= status < 500 and status not in _LATER:
        why = f"the proxy answers {status}; check HTTPS_PROXY, HTTP_PROXY, and what the proxy allows"
        return Misconfigured(why, is_answer=False)
    return Retry(f"proxy_http_{status}")


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
