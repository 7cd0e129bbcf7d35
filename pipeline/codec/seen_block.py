"""Blocks of the `seen-hits` topic: the ids that one transaction accepted from one raw partition.

Layout, big-endian: version (1 byte), 3 bytes of zero, count (uint32), first and last append time (int64 ms each), then
16 bytes per id. The header is 24 bytes long, so that the ids are aligned and can be read in place.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VERSION = 1
ID_BYTES = 16
Ids = NDArray[np.uint64]
"""Shape (n, 2): one id of 16 bytes per row."""

_HEADER = struct.Struct(">B3xIqq")


class SeenBlock(NamedTuple):
    """Ids whose records the broker appended between `first_ms` and `last_ms`."""

    first_ms: int
    last_ms: int
    ids: Ids


def as_ids(joined: bytes) -> Ids:
    """Digests of 16 bytes, one behind the other, as an array without a copy."""
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)


def encode_seen_block(joined_ids: bytes, first_ms: int, last_ms: int) -> bytes:
    """One block of the digests in `joined_ids`."""
    return _HEADER.pack(VERSION, len(joined_ids) // ID_BYTES, first_ms, last_ms) + joined_ids


def decode_seen_block(value: bytes) -> SeenBlock:
    """Raises ValueError when `value` is no block of a version that this release knows."""
    if len(value) < _HEADER.size:
        raise ValueError(f"a seen-hits block of {len(value)} bytes is cut short")
    version, count, first_ms, last_ms = _HEADER.unpack_from(value)
    if version != VERSION:
        raise ValueError(f"a seen-hits block of version {version}; this release reads {VERSION}")
    if len(value) != _HEADER.size + count * ID_BYTES:
        raise ValueError(f"a seen-hits block of {count} ids has {len(value)} bytes")
    return SeenBlock(first_ms, last_ms, np.frombuffer(value, dtype="<u8", offset=_HEADER.size).reshape(-1, 2))
