"""The operator's proxies for outgoing requests: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case.

aiohttp's `trust_env` is not used. It also takes passwords from ~/.netrc, does not support networks in NO_PROXY, ignores ALL_PROXY
and reads the environment for each request.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined] # typeshed

from pipeline.codec.ip_address import parse_ip, parse_network

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Proxy(NamedTuple):
    """One proxy. `url` holds no credentials; `variable` is the environment variable that names it, for messages."""

    url: str
    user: str
    password: str
    variable: str

    @property
    def authorization(self) -> str:
        """The value of the header `Proxy-Authorization`; "" without credentials."""
        if not self.user:
            return ""
        return "Basic " + b64encode(f"{self.user}:{self.password}".encode()).decode()

    @property
    def url_with_credentials(self) -> str:
        """The URL with credentials. Never put it into a log or a message."""
        if not self.user:
            return self.url
        scheme, _, host_and_port = self.url.partition("://")
        return f"{scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{host_and_port}"


class InvalidProxy(Exception):
    """An environment variable holds no valid proxy. The message does not show the value, which may contain a password."""


class Proxies:
    """Selects the proxy of a request. `variables` holds the environment's values by kind: `http`, `https`, `all`, `no`."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._values = {kind: text for kind in ("http", "https", "all") if (text := variables.get(kind, "").strip())}
        entries = [entry for entry in re.split(r"[,\s]+", variables.get("no", "").lower()) if entry]
        self._is_all_direct = "*" in entries
        self._direct_networks = [network for entry in entries if (network := _network_of(entry)) is not None]
        # `*.example.com` means `.example.com`, as in Go.
        self._no_proxy = {"no": ",".join(entry.removeprefix("*") for entry in entries)}
        self._find_cached = lru_cache(maxsize=256)(self._find)

    @classmethod
    def from_environment(cls) -> Proxies:
        """Return the proxies of this process's environment. A variable in lower case takes precedence, even if empty."""
        return cls(getproxies_environment())

    def __bool__(self) -> bool:
        """Return whether any proxy is set."""
        return bool(self._values)

    def proxy_for(self, scheme: str, host: str, port: int | None) -> Proxy | None:
        """Return the proxy for requests to `host` (without brackets), None for direct requests. Raises InvalidProxy.

        Requests to this machine never use a proxy, because `localhost` would mean the proxy's machine.
        """
        if scheme not in _DEFAULT_PORTS:
            return None
        return self._find_cached(scheme, host.lower().rstrip("."), port or _DEFAULT_PORTS[scheme])

    def _find(self, scheme: str, host: str, port: int) -> Proxy | None:
        kind = scheme if scheme in self._values else "all"
        value = self._values.get(kind)
        if value is None or self._is_all_direct or self._is_direct(host, port):
            return None
        return _parse_proxy(value, f"{kind.upper()}_PROXY")

    def _is_direct(self, host: str, port: int) -> bool:
        if host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            address = parse_ip(host)
        except ValueError:
            literal = host
        else:
            networks = (network for network in self._direct_networks if network.version == address.version)
            if address.is_loopback or any(address in network for network in networks):
                return True
            literal = f"[{host}]" if ":" in host else host
        return bool(proxy_bypass_environment(f"{literal}:{port}", self._no_proxy))


def _network_of(entry: str) -> IPv4Network | IPv6Network | None:
    try:
        return parse_network(entry.strip("[]"))
    except ValueError:
        return None  # a name, or an address with a port


def _parse_proxy(value: str, variable: str) -> Proxy:
    invalid = InvalidProxy(f"{variable} holds no valid proxy; set it to http://host:port")
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        default_port = _DEFAULT_PORTS[parts.scheme]
        port = parts.port or default_port
    except (ValueError, KeyError):
        raise invalid from None
    if not parts.hostname:
        raise invalid
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Proxy(
        f"{parts.scheme}://{host}:{port}", unquote(parts.username or ""), unquote(parts.password or ""), variable
    )
