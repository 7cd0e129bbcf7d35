"""Blocks of the `seen-hits` topic: the ids that one transaction accepted from one raw partition, and a mark of each content.

Layout: a big-endian header of version (1 byte), 3 bytes of zero, count (uint32), first and last append time (int64 ms each); then
16 bytes per id, then 2 bytes per mark (little-endian). The header is 24 bytes long, so that both are aligned and can be read in place.
Version 1 has no marks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VERSION = 2
_WITHOUT_MARKS = 1
ID_BYTES = 16
MARK_BYTES = 2
Ids = NDArray[np.uint64]
"""Shape (n, 2): one id of 16 bytes per row."""
Marks = NDArray[np.uint16]
"""One `content_mark` (pipeline/codec/content.py) per id."""
UNMARKED = 0
"""The mark of a content that nobody knows any more; no `content_mark` is 0."""

_HEADER = struct.Struct(">B3xIqq")


class SeenBlock(NamedTuple):
    """Ids whose records the broker appended between `first_ms` and `last_ms`."""

    first_ms: int
    last_ms: int
    ids: Ids
    marks: Marks


def as_ids(joined: bytes) -> Ids:
    """Digests of 16 bytes, one behind the other, as an array without a copy."""
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)


def as_marks(marks: Sequence[int]) -> Marks:
    """As an array."""
    return np.array(marks, "<u2")


def encode_seen_block(joined_ids: bytes, marks: Marks, first_ms: int, last_ms: int) -> bytes:
    """One block of the digests in `joined_ids`; `marks` has one for each."""
    return _HEADER.pack(VERSION, len(marks), first_ms, last_ms) + joined_ids + marks.tobytes()


def decode_seen_block(value: bytes) -> SeenBlock:
    """Raises ValueError when `value` is no block of a version that this release knows."""
    if len(value) < _HEADER.size:
        raise ValueError(f"a seen-hits block of {len(value)} bytes is cut short")
    version, count, first_ms, last_ms = _HEADER.unpack_from(value)
    if version not in (VERSION, _WITHOUT_MARKS):
        raise ValueError(f"a seen-hits block of version {version}; this release reads {_WITHOUT_MARKS} and {VERSION}")
    marks_at = _HEADER.size + count * ID_BYTES
    if len(value) != marks_at + (count * MARK_BYTES if version == VERSION else 0):
        raise ValueError(f"a seen-hits block of {count} ids has {len(value)} bytes")
    ids = np.frombuffer(value, "<u8", count * 2, _HEADER.size).reshape(-1, 2)
    marks = np.frombuffer(value, "<u2", count, marks_at) if version == VERSION else np.zeros(count, np.uint16)
    return SeenBlock(first_ms, last_ms, ids, marks)
