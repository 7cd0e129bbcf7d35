"""The byte layout of blocks of seen-hits."""

from __future__ import annotations

import pytest

from pipeline.codec.seen_block import (
    UNMARKED,
    as_hashes,
    as_ids,
    as_marks,
    decode_seen_block,
    encode_seen_block,
    partitions_of_block,
)

IDS = bytes(range(16)) + bytes(range(16, 32))
GOLDEN = bytes.fromhex(
    "03 01 0008 00000002"  # version 3, ids in namespaces, 8 partitions, two ids
    "000001a2b3c4d5e6 000001a2b3c4d5f0"
    "000102030405060708090a0b0c0d0e0f 101112131415161718191a1b1c1d1e1f"
    "efbeadde 01000000"
    "0700 ffff"
)
FIRST_MS, LAST_MS = 0x1A2B3C4D5E6, 0x1A2B3C4D5F0


def test_a_block_is_laid_out_as_documented() -> None:
    hashes, marks = as_hashes([0xDEADBEEF, 1]), as_marks([7, 0xFFFF])
    assert encode_seen_block(IDS, hashes, marks, FIRST_MS, LAST_MS, 8) == GOLDEN
    block = decode_seen_block(GOLDEN)
    assert (block.first_ms, block.last_ms, block.partitions) == (FIRST_MS, LAST_MS, 8)
    assert block.ids.tolist() == as_ids(IDS).tolist()
    assert (block.hashes.tolist(), block.marks.tolist()) == ([0xDEADBEEF, 1], [7, 0xFFFF])
    assert partitions_of_block(GOLDEN) == 8 and not block.is_common
    assert decode_seen_block(GOLDEN[:1] + b"\0" + GOLDEN[2:]).is_common


@pytest.mark.parametrize(
    ("value", "marks"),
    [
        (b"\x02" + bytes(3) + GOLDEN[4:56] + GOLDEN[64:], [7, 0xFFFF]),
        (b"\x01" + bytes(3) + GOLDEN[4:56], [UNMARKED, UNMARKED]),
    ],
    ids=["version 2", "version 1"],
)
def test_blocks_of_older_releases_are_read_without_a_number_of_partitions(value: bytes, marks: list[int]) -> None:
    block = decode_seen_block(value)
    assert (block.first_ms, block.last_ms, block.partitions) == (FIRST_MS, LAST_MS, 0)
    assert block.ids.tolist() == as_ids(IDS).tolist()
    assert (block.hashes.tolist(), block.marks.tolist()) == ([], marks) and block.is_common
    assert partitions_of_block(value) == 0


@pytest.mark.parametrize("partitions", [1, 255, 256, 1000, 65_535])
def test_a_block_holds_any_number_of_partitions_of_a_topic(partitions: int) -> None:
    value = encode_seen_block(b"", as_hashes([]), as_marks([]), 0, 0, partitions)
    assert decode_seen_block(value).partitions == partitions_of_block(value) == partitions


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x04" + bytes(23), GOLDEN[:-1], GOLDEN + b"x", b"\x02" + GOLDEN[1:]])
def test_bytes_that_are_not_a_block_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="seen-hits block"):
        decode_seen_block(value)
