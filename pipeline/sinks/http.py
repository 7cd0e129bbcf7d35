"""Sends HTTP requests to destinations: httpx on aiohttp, without redirects and without access to private networks."""

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
from pipeline.sinks.address_guard import ProxiedHosts, PublicResolver, is_caused_by_private_address
from pipeline.sinks.proxies import InvalidProxy, Proxies, Proxy
from pipeline.sinks.transport import SessionTransport

logger = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=60.0, sock_connect=10.0, sock_read=15.0)
"""`total` bounds the whole response, so that a destination cannot send it byte by byte for ever."""
_DEFAULT_HEADERS = {b"accept-encoding": b"identity", b"user-agent": b"hitrouter"}
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_MAX_BODY_BYTES = 65_536
_TRANSIENT_STATUSES = frozenset({408, 425, 429})
_PRIVATE_ADDRESS = Misconfigured(
    "the address belongs to a private network; set delivery.allow_private to allow it", is_answer=False
)
_TWO_CREDENTIALS = Misconfigured(
    "the address contains a user, and a header Authorization is set; remove one of them", is_answer=False
)
_INVALID_URL = Misconfigured(
    "the address of the destination is invalid; check the connection's settings", is_answer=False
)


def retry_after_seconds(retry_after: str, now_seconds: float) -> str:
    """Return the value of `Retry-After`, seconds or a date (RFC 9110, 10.2.3), as digits; "" if it is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return text
    try:
        return str(max(0, math.ceil(parsedate_to_datetime(text).timestamp() - now_seconds)))
    except (ValueError, OverflowError):  # OverflowError: a year with too many digits
        return ""


class HttpSink:
    """Sends the requests of one connection. Use and `close` it in one event loop.

    Uses httpx's transport without its client. The client adds redirects, cookies and merging of URLs and headers, which are
    unwanted here and double the cost of a request.
    """

    def __init__(self, max_in_flight: int, allow_private: bool = False, proxies: Proxies | None = None) -> None:
        self._max_in_flight = max_in_flight
        self._allow_private = allow_private
        self._proxies = Proxies.from_environment() if proxies is None else proxies
        self._proxied_hosts = ProxiedHosts()
        self._direct = SessionTransport(partial(self._session, None if allow_private else PublicResolver))
        self._proxied: dict[Proxy, SessionTransport] = {}
        """By proxy. Their sessions resolve only the proxy's host, which the operator sets and which may be private."""

    async def send(self, request: HttpRequest) -> HttpResponse | Outcome:
        """Send once. Return the response, or the outcome if there is none. Never raises network errors."""
        try:
            if _CONTROL_CHARACTER.search("\t".join((*request.headers, *request.headers.values()))):
                return Rejected("invalid_header", "a header would contain a control character")
            url, is_allowed = _parse_url(request.url)
            if not is_allowed and not self._allow_private:
                return _PRIVATE_ADDRESS
            proxy = self._proxy_for(url) if self._proxies else None
            if proxy is not None and not self._allow_private and await self._proxied_hosts.is_private(url):
                return _PRIVATE_ADDRESS
            headers = {name.lower().encode(): value.encode() for name, value in request.headers.items()}
            if b"authorization" in headers and url.userinfo:
                return _TWO_CREDENTIALS
            transport = self._direct if proxy is None else self._transport_for(proxy)
            response = await transport.handle_async_request(
                httpx.Request(
                    request.method,
                    url,
                    headers=[*{**_DEFAULT_HEADERS, **headers}.items()],
                    stream=httpx.ByteStream(request.body),  # `content` would make httpx inspect the headers first
                )
            )
            assert isinstance(response.stream, httpx.AsyncByteStream)
            try:
                body = b""
                async for part in response.stream:
                    body += part
                    if len(body) >= _MAX_BODY_BYTES:
                        break
            finally:
                await response.stream.aclose()
            if response.status_code == 407 and proxy is not None and url.scheme == "http":
                return _outcome_of_proxy_refusal(407)
            return HttpResponse(response.status_code, _normalized(response.headers), body[:_MAX_BODY_BYTES])
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError):
            return _INVALID_URL
        except InvalidProxy as error:
            return Misconfigured(str(error), is_answer=False)
        except httpx.ProxyError as error:
            # Only the status or the name: the error holds the proxy's credentials.
            if isinstance(error.__cause__, aiohttp.ClientHttpProxyError):
                return _outcome_of_proxy_refusal(error.__cause__.status)
            return Retry(type(error.__cause__).__name__)
        except httpx.HTTPError as error:
            if is_caused_by_private_address(error):
                return _PRIVATE_ADDRESS
            # aiohttp's name distinguishes a certificate error from a timeout.
            return Retry(type(error.__cause__ or error).__name__)
        except aiohttp.ClientError as error:
            # An error that httpx-aiohttp does not translate, such as a response that is not HTTP. Only its name: the error holds
            # the request's headers.
            return Retry(type(error).__name__)
        except TimeoutError:
            return Retry("Timeout")
        except asyncio.CancelledError:
            # Closing aiohttp's connector cancels its name look-ups, and with them the requests that wait for one. Such a
            # cancellation is not a cancellation of this task.
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            return Retry("Closed")

    async def close(self) -> None:
        """Close all HTTP connections."""
        for transport in (self._direct, *self._proxied.values()):
            await transport.aclose()

    def _proxy_for(self, url: httpx.URL) -> Proxy | None:
        return self._proxies.proxy_for(url.scheme, url.raw_host.decode("ascii"), url.port)

    def _transport_for(self, proxy: Proxy) -> SessionTransport:
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


def _outcome_of_proxy_refusal(status: int) -> Retry | Misconfigured:
    """Return the outcome of a proxy's refusal. The destination has not seen the hit, so the hit never becomes a dead letter."""
    if 400 <= status < 500 and status not in _TRANSIENT_STATUSES:
        message = f"the proxy answers {status}; check HTTPS_PROXY, HTTP_PROXY, and what the proxy allows"
        return Misconfigured(message, is_answer=False)
    return Retry(f"proxy_http_{status}")


def _normalized(headers: httpx.Headers) -> Mapping[str, str]:
    """Return the headers with `retry-after` in seconds. Others are decoded lazily, because few verdicts read them."""
    if all(name.lower() != b"retry-after" for name, _ in headers.raw):
        return headers
    return {**headers, "retry-after": retry_after_seconds(headers["retry-after"], time.time())}


@lru_cache(maxsize=1024)
def _parse_url(url: str) -> tuple[httpx.URL, bool]:
    """Return the parsed URL, and False if its host is a private address. Host names give True; the resolver checks them."""
    parsed = httpx.URL(url)
    try:
        return parsed, is_public(parsed.host)
    except ValueError:
        return parsed, True  # a host name
