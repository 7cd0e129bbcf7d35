"""The client's ip: its own `context.ip` wins, else the request's; anonymised where the operator says so."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from pipeline.codec.ip_address import parse_ip
from pipeline.config.models import IpConfig

FLAG_INVALID = "ip_invalid"
HIDDEN = "?"
"""Instead of what is no address, where addresses are anonymised. No shorter text holds an address, so no hit grows by it."""

LONGEST_IP = 64
"""Characters: an IPv6 address has 45 at most, and may name its zone."""


def read_ip(text: str, anonymize: bool) -> str | None:
    """The address as it is to be stored; None when `text` is no address.

    An IPv4-mapped address becomes the IPv4 address. Anonymising zeroes the last octet of IPv4, also within an address of 6to4, and
    the last 80 bits of IPv6 (contract.md, section 4).
    """
    return remembered_ip(text, anonymize) if len(text) <= LONGEST_IP else None


@lru_cache(maxsize=65_536)
def remembered_ip(text: str, anonymize: bool) -> str | None:
    """As `read_ip`, for texts of at most LONGEST_IP characters."""
    try:
        address = parse_ip(text)
    except ValueError:
        return None
    if not anonymize:
        return str(address) if isinstance(address, IPv4Address) else text
    if isinstance(address, IPv4Address):
        return str(IPv4Address(int(address) & 0xFFFFFF00))
    # An address of 6to4 holds an IPv4 address behind its first 16 bits (RFC 3056, 2).
    cut = 80 if address.sixtofour is None else 88
    return str(IPv6Address(int(address) >> cut << cut))


def anonymous_ip(text: str) -> str:
    """A client's `context.ip` as it may be stored: HIDDEN where it is no address, since it may hold one, such as `192.0.2.1:80`."""
    return (read_ip(text, anonymize=True) or HIDDEN) if text else text


def derive_ip(sent: str | None, request_ip: str | None, settings: IpConfig) -> tuple[str | None, bool]:
    """The value of `context.ip` (None: leave the context as it is), and whether the client's own is no address."""
    if sent:
        stored = read_ip(sent, settings.anonymize)
        if stored is None:
            return (HIDDEN if settings.anonymize else None), True
        return (stored if settings.anonymize or stored != sent else None), False
    if settings.from_request and request_ip:
        return read_ip(request_ip, settings.anonymize), False
    return None, False
