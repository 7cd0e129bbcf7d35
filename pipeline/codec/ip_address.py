"""Parses IP addresses. IPv4-mapped IPv6 addresses, as dual-stack sockets report IPv4 peers, become IPv4 (RFC 4291, 2.5.5.2)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network


def parse_ip(text: str) -> IPv4Address | IPv6Address:
    """Return the address in `text`. Raises ValueError if `text` is not an address."""
    address = ip_address(text)
    return address if isinstance(address, IPv4Address) else address.ipv4_mapped or address


def plain_ip(text: str) -> str:
    """Return `text`, or the IPv4 address if it is IPv4-mapped. Other text is returned unchanged."""
    if ":" not in text:
        return text
    try:
        address = parse_ip(text)
    except ValueError:
        return text
    return str(address) if isinstance(address, IPv4Address) else text


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Return the network in `text`. Raises ValueError if `text` is not a network."""
    network = ip_network(text)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None or network.prefixlen < 96 else IPv4Network((mapped, network.prefixlen - 96))
