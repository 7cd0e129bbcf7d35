"""Whose request is it? Proxies are believed only where the operator names them (`intake.trusted_proxies`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

from pipeline.codec.ip_address import parse_ip, plain_ip

Networks = Sequence[IPv4Network | IPv6Network]


class ClientAddress:
    """Reads the sender's address from behind trusted proxies. No address that it returns is an IPv4-mapped one if no peer is."""

    def __init__(self, trusted: Networks) -> None:
        self._trusted = trusted
        self._is_trusted = lru_cache(4096)(self._in_networks)

    @property
    def trusts_any(self) -> bool:
        """Is any proxy trusted?"""
        return bool(self._trusted)

    def trusts(self, address: str) -> bool:
        """Is it that of a trusted proxy?"""
        return bool(self._trusted) and self._is_trusted(address)

    def read(self, peer: str, forwarded_for: str | None, forwarded: str | None) -> str:
        """The peer itself, or the last address before it that no trusted proxy has.

        `forwarded_for` is X-Forwarded-For, `forwarded` the header of RFC 7239. Proxies write one of them and let the other
        through, so where they say two things one is the client's invention, and neither counts.
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
        """The nearest proxy wrote the last hop: what stands before the first that we don't trust may be an invention, too."""
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
    """Without quotes, brackets and port."""
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
