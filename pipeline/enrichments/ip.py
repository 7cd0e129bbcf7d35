"""Derives `context.ip`: the client's own value, else the address of the request; anonymized if the operator configures it."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from pipeline.codec.ip_address import parse_ip
from pipeline.config.models import IpConfig

FLAG_INVALID = "ip_invalid"
HIDDEN = "?"
"""Replaces an invalid address where addresses are anonymized. No address is shorter, so it never makes a hit larger."""

LONGEST_IP = 64
"""Most characters: an IPv6 address has up to 45, and may have a zone."""


def read_ip(text: str, anonymize: bool) -> str | None:
    """Return the address as it is stored; None if `text` is not an address.

    An IPv4-mapped address becomes the IPv4 address. Anonymizing sets the last octet of an IPv4 address to zero, also within a 6to4
    address, and the last 80 bits of an IPv6 address (contract.md, section 4).
    """
    return remembered_ip(text, anonymize) if len(text) <= LONGEST_IP else None


@lru_cache(maxsize=65_536)
def remembered_ip(text: str, anonymize: bool) -> str | None:
    """Return the cached result of `read_ip`, for texts of at most LONGEST_IP characters."""
    try:
        address = parse_ip(text)
    except ValueError:
        return None
    if not anonymize:
        return str(address) if isinstance(address, IPv4Address) else text
    if isinstance(address, IPv4Address):
        return str(IPv4Address(int(address) & 0xFFFFFF00))
    # A 6to4 address contains an IPv4 address after its first 16 bits (RFC 3056, 2).
    cut = 80 if address.sixtofour is None else 88
    return str(IPv6Address(int(address) >> cut << cut))


def anonymous_ip(text: str) -> str:
    """Return a client's `context.ip` anonymized. An invalid one becomes HIDDEN, since it may contain an address: `192.0.2.1:80`."""
    return (read_ip(text, anonymize=True) or HIDDEN) if text else text


def derive_ip(sent: str | None, request_ip: str | None, settings: IpConfig) -> tuple[str | None, bool]:
    """Return the value of `context.ip` (None: leave the context unchanged), and whether the client's value is invalid."""
    if sent:
        stored = read_ip(sent, settings.anonymize)
        if stored is None:
            return (HIDDEN if settings.anonymize else None), True
        return (stored if settings.anonymize or stored != sent else None), False
    if settings.from_request and request_ip:
        return read_ip(request_ip, settings.anonymize), False
    return None, False
