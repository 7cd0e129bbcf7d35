"""The operator's proxies for outgoing requests: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case.

aiohttp's own `trust_env` is not used: it also takes passwords from ~/.netrc, knows no networks in NO_PROXY, ignores ALL_PROXY and
reads the environment anew for each request.
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

_PORTS = {"http": 80, "https": 443}


class Proxy(NamedTuple):
    """`url` holds no credentials. `variable` names it in messages."""

    url: str
    user: str
    password: str
    variable: str

    @property
    def authorization(self) -> str:
        """The value of `Proxy-Authorization`; "" without credentials."""
        if not self.user:
            return ""
        return "Basic " + b64encode(f"{self.user}:{self.password}".encode()).decode()

    @property
    def with_credentials(self) -> str:
        """The whole address, for no log and no message."""
        if not self.user:
            return self.url
        scheme, _, place = self.url.partition("://")
        return f"{scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{place}"


class UnfitProxy(Exception):
    """A variable holds no proxy that can be used. The message does not show the value, which may hold a password."""


class Proxies:
    """Says which proxy a request takes. `variables` hold the environment's by kind: `http`, `https`, `all`, `no`."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._values = {kind: text for kind in ("http", "https", "all") if (text := variables.get(kind, "").strip())}
        entries = [entry for entry in re.split(r"[,\s]+", variables.get("no", "").lower()) if entry]
        self._never = "*" in entries
        self._networks = [network for entry in entries if (network := _network_of(entry)) is not None]
        # `*.example.com` means `.example.com`, as in Go.
        self._names = {"no": ",".join(entry.removeprefix("*") for entry in entries)}
        self._found = lru_cache(maxsize=256)(self._find)

    @classmethod
    def from_environment(cls) -> Proxies:
        """Those of this process. A variable in lower case wins, also an empty one."""
        return cls(getproxies_environment())

    def __bool__(self) -> bool:
        """Is there any?"""
        return bool(self._values)

    def of(self, scheme: str, host: str, port: int | None) -> Proxy | None:
        """Return the proxy for requests to `host`, which has no brackets; None: directly. Raises UnfitProxy.

        Requests to this machine never take a proxy, to which `localhost` would be another machine.
        """
        if scheme not in _PORTS:
            return None
        return self._found(scheme, host.lower().rstrip("."), port or _PORTS[scheme])

    def _find(self, scheme: str, host: str, port: int) -> Proxy | None:
        kind = scheme if scheme in self._values else "all"
        value = self._values.get(kind)
        if value is None or self._never or self._is_direct(host, port):
            return None
        return _proxy_of(value, f"{kind.upper()}_PROXY")

    def _is_direct(self, host: str, port: int) -> bool:
        if host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            address = parse_ip(host)
        except ValueError:
            literal = host
        else:
            if address.is_loopback or any(address in of for of in self._networks if of.version == address.version):
                return True
            literal = f"[{host}]" if ":" in host else host
        return bool(proxy_bypass_environment(f"{literal}:{port}", self._names))


def _network_of(entry: str) -> IPv4Network | IPv6Network | None:
    try:
        return parse_network(entry.strip("[]"))
    except ValueError:
        return None  # a name, or an address with a port


def _proxy_of(value: str, variable: str) -> Proxy:
    unfit = UnfitProxy(f"{variable} holds no proxy that can be used; set it to http://host:port")
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        default_port = _PORTS[parts.scheme]
        port = parts.port or default_port
    except (ValueError, KeyError):
        raise unfit from None
    if not parts.hostname:
        raise unfit
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Proxy(
        f"{parts.scheme}://{host}:{port}", unquote(parts.username or ""), unquote(parts.password or ""), variable
    )
