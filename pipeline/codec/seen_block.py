"""Blocks of the topic `seen-hits`: the ids that one transaction accepted from one partition of hits-raw, with their key hashes.

Layout of version 3; all fields are aligned, so a block is read without a copy:

| Bytes | Holds |
|---|---|
| 0 | version |
| 1 | 1: ids in namespaces; 0: common ids of older releases (pipeline/stages/deduplicate.py) |
| 2-3 | number of partitions that hits-raw had, big-endian |
| 4-7 | n, the number of ids, big-endian |
| 8-23 | first and last append time in ms, big-endian int64 each |
| 16 n | ids |
| 4 n | key hashes: CRC32 of each record's key, little-endian |
| 2 n | marks of the contents, little-endian |

Byte 1 did not need a new version: older releases, which write 0, ignore it, so a downgrade stays possible. The key hash gives
the partition of an id for any number of partitions. Version 2 has no key hashes, and zero as the number of partitions; version 1
has no marks either.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VERSION = 3
_WITHOUT_HASHES, _WITHOUT_MARKS = 2, 1
ID_BYTES = 16
_HASH_BYTES = 4
MARK_BYTES = 2
MOST_PARTITIONS = 65_535
"""The largest number of partitions that fits into a block."""
Ids = NDArray[np.uint64]
"""Shape (n, 2): one id of 16 bytes per row."""
Hashes = NDArray[np.uint32]
"""One key hash per id."""
Marks = NDArray[np.uint16]
"""One `content_mark` (pipeline/codec/content.py) per id."""
UNMARKED = 0
"""The mark of an unknown content; no `content_mark` is 0."""

_IN_NAMESPACES = 1
_HEADER = struct.Struct(">BBHIqq")
_ID_BYTES_OF = {
    VERSION: ID_BYTES + _HASH_BYTES + MARK_BYTES,
    _WITHOUT_HASHES: ID_BYTES + MARK_BYTES,
    _WITHOUT_MARKS: ID_BYTES,
}


class SeenBlock(NamedTuple):
    """Ids whose records the broker appended between `first_ms` and `last_ms`.

    `partitions` is the number of partitions of hits-raw at that time, and `hashes` are the key hashes. For blocks of versions 1
    and 2 `partitions` is 0 and `hashes` is empty. `is_common`: the block was written by a release without namespaces of ids.
    """

    first_ms: int
    last_ms: int
    ids: Ids
    marks: Marks
    partitions: int
    hashes: Hashes
    is_common: bool = False


def as_ids(joined: bytes) -> Ids:
    """Return concatenated digests of 16 bytes as an array, without a copy."""
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)


def as_marks(marks: Sequence[int]) -> Marks:
    """Return `marks` as an array."""
    return np.array(marks, "<u2")


def as_hashes(hashes: Sequence[int]) -> Hashes:
    """Return `hashes` as an array."""
    return np.array(hashes, "<u4")


def encode_seen_block(
    joined_ids: bytes, hashes: Hashes, marks: Marks, first_ms: int, last_ms: int, partitions: int
) -> bytes:
    """Return one block of the digests in `joined_ids`; `hashes` and `marks` have one entry for each."""
    header = _HEADER.pack(VERSION, _IN_NAMESPACES, partitions, len(marks), first_ms, last_ms)
    return header + joined_ids + hashes.tobytes() + marks.tobytes()


def partitions_of_block(value: bytes) -> int:
    """Return `SeenBlock.partitions` of the block in `value`, without decoding the rest."""
    return int.from_bytes(value[2:4], "big") if value[:1] == b"%c" % VERSION else 0


def decode_seen_block(value: bytes) -> SeenBlock:
    """Return the block in `value` without a copy. Raises ValueError when it is not a block of a known version."""
    if len(value) < _HEADER.size:
        raise ValueError(f"a seen-hits block of {len(value)} bytes is truncated")
    version, namespaces, partitions, count, first_ms, last_ms = _HEADER.unpack_from(value)
    if version not in _ID_BYTES_OF:
        raise ValueError(
            f"a seen-hits block has version {version}, this release reads {min(_ID_BYTES_OF)} to {VERSION}: "
            "run the release that wrote it, or a newer one"
        )
    if len(value) != _HEADER.size + count * _ID_BYTES_OF[version]:
        raise ValueError(f"a seen-hits block of {count} ids has {len(value)} bytes")
    ids = np.frombuffer(value, "<u8", count * 2, _HEADER.size).reshape(-1, 2)
    at = _HEADER.size + count * ID_BYTES
    hashes = np.zeros(0, np.uint32)
    if version == VERSION:
        hashes = np.frombuffer(value, "<u4", count, at)
        at += count * _HASH_BYTES
    marks = np.zeros(count, np.uint16) if version == _WITHOUT_MARKS else np.frombuffer(value, "<u2", count, at)
    partitions = partitions if version == VERSION else 0
    return SeenBlock(first_ms, last_ms, ids, marks, partitions, hashes, is_common=not namespaces)
