"""Decides which addresses outgoing requests may connect to (contract.md, section 6)."""

from __future__ import annotations

import ipaddress

from pipeline.codec.ip_address import parse_ip


def is_public(address: str) -> bool:
    """Return whether requests may connect to `address`: not if private, loopback, link-local (metadata services) or reserved.

    IPv6 addresses that wrap an IPv4 address (mapped, compatible, 6to4, NAT64) are judged by that address. Teredo addresses are
    refused. Raises ValueError if `address` is invalid.
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
        "2001::/23",  # IETF protocol assignments (RFC 2928), Teredo (RFC 4380) among them
        "3fff::/20",  # documentation (RFC 9637)
        "fec0::/10",  # site-local (RFC 3879)
    )
)
"""Refused networks that some version of `ipaddress` counts as global."""
