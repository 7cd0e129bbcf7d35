"""Finds the client's address. Forwarded headers count only from trusted proxies (`intake.trusted_proxies`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

from pipeline.codec.ip_address import parse_ip, plain_ip

Networks = Sequence[IPv4Network | IPv6Network]


class ClientAddress:
    """Reads the client's address behind trusted proxies. It returns no IPv4-mapped address, provided `peer` is none."""

    def __init__(self, trusted: Networks) -> None:
        self._trusted = trusted
        self._is_trusted = lru_cache(4096)(self._in_networks)

    @property
    def trusts_any(self) -> bool:
        """Whether any proxy is trusted."""
        return bool(self._trusted)

    def trusts(self, address: str) -> bool:
        """Return whether `address` is that of a trusted proxy."""
        return bool(self._trusted) and self._is_trusted(address)

    def read(self, peer: str, forwarded_for: str | None, forwarded: str | None) -> str:
        """Return `peer`, or behind trusted proxies the nearest hop that is not a trusted proxy.

        `forwarded_for` is X-Forwarded-For, `forwarded` the header of RFC 7239. A proxy writes one of them and passes the other
        through. So if they disagree, the client may have forged one, and both are ignored.
        """
        if not self.trusts(peer):
            return peer
        found = set()
        if forwarded_for is not None:
            found.add(self._sender(peer, [_bare(hop) for hop in forwarded_for.split(",")]))
        if forwarded is not None:
            found.add(self._sender(peer, [_for(element) for element in forwarded.split(",")]))
        return found.pop() if len(found) == 1 else peer

    def _sender(self, peer: str, hops: Sequence[str]) -> str:
        """Walk the hops from the nearest proxy outwards; hops beyond the first untrusted one may be forged."""
        found = peer
        for hop in reversed(hops):
            if not _is_address(hop):
                break
            found = hop
            if not self._is_trusted(hop):
                break
        return found

    def _in_networks(self, text: str) -> bool:
        try:
            address = parse_ip(text)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


def _for(element: str) -> str:
    for pair in element.split(";"):
        name, _, value = pair.strip().partition("=")
        if name.lower() == "for":
            return _bare(value)
    return ""


def _bare(node: str) -> str:
    """Return the address without quotes, brackets and port."""
    text = node.strip().strip('"')
    if text.startswith("["):
        return plain_ip(text[1:].partition("]")[0])
    return text.partition(":")[0] if text.count(":") == 1 else plain_ip(text)


def _is_address(text: str) -> bool:
    try:
        parse_ip(text)
    except ValueError:
        return False
    return True
