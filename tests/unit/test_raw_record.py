"""Records of hits-raw from any writer (contract.md, section 2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import partition_of
from pipeline.stages.classify import Dead, RawHit, Rekey, classify_raw
from pipeline.stages.deduplicate import id_of
from schemas import read_schema

VALUE = b'{"hitId":"h","event":{"user":{"userId":"u"}}}'
NAMELESS = b'{"event":{"user":{"userId":"u"}}}'
HEADERS = [("project", b"shop")]
PARTITIONS = 4


def classify(
    value: bytes | None, key: bytes | None, partition: int, headers: list[tuple[str, bytes]] = HEADERS
) -> RawHit | Rekey | Dead:
    return classify_raw(value, key, headers, "hits-raw", partition, 42, PARTITIONS, {"shop"})


def avro(hit: bytes, **facts: object) -> bytes:
    return Framing(read_schema("raw_hit.avsc")).encode({"hit": hit, **facts})


def test_an_avro_record_is_read_like_a_json_one() -> None:
    facts = {"project": "shop", "received_at": 1_795_500_000_123, "request_ip": "192.0.2.7", "user_agent": "agent"}
    found = classify(avro(VALUE, **facts), b"shop/h", partition_of(b"shop/h", PARTITIONS), [])
    assert isinstance(found, RawHit)
    assert (found.project, found.hit_id, found.hit.user_id) == ("shop", "h", "u")
    assert (found.received_at_ms, found.request_ip, found.user_agent) == (1_795_500_000_123, "192.0.2.7", "agent")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (b"1795500000123", 1_795_500_000_123),
        (b"1795500000", 1_795_500_000_000),
        (b"1795500000.5", None),
        (b"soon", None),
    ],
)
def test_a_time_of_receipt_is_in_milliseconds_or_seconds(text: bytes, read: int | None) -> None:
    found = classify(VALUE, b"shop/h", partition_of(b"shop/h", PARTITIONS), [*HEADERS, ("received-at", text)])
    assert isinstance(found, RawHit)
    assert found.received_at_ms == read


def test_headers_take_precedence_over_fields_of_an_avro_record() -> None:
    value = avro(VALUE, project="nobody", request_ip="192.0.2.7")
    found = classify(value, b"shop/h", partition_of(b"shop/h", PARTITIONS))
    assert isinstance(found, RawHit)
    assert (found.project, found.request_ip) == ("shop", "192.0.2.7")


def test_a_record_with_the_right_key_in_the_right_partition_is_a_hit() -> None:
    found = classify(VALUE, b"shop/h", partition_of(b"shop/h", PARTITIONS))
    assert isinstance(found, RawHit)
    assert (found.project, found.hit_id) == ("shop", "h")


def test_leading_white_space_is_accepted() -> None:
    """JSON allows it, and the intake answered it with 204 (RFC 8259, section 2)."""
    found = classify(b"\r\n\t " + VALUE + b"\n", b"shop/h", partition_of(b"shop/h", PARTITIONS))
    assert isinstance(found, RawHit)
    assert found.hit.user_id == "u"
    assert classify(b" \n", None, 0) == Dead("invalid_json", "the record holds only white space", "", "shop")


@pytest.mark.parametrize("key", [None, b"", b"h", b"blog/h", b"shop/other"])
def test_a_record_without_the_right_key_is_written_back_once(key: bytes | None) -> None:
    right = partition_of(b"shop/h", PARTITIONS)
    found = classify(VALUE, key, right)
    assert isinstance(found, Rekey)
    assert (found.key, found.partition) == (b"shop/h", right)
    again = classify(VALUE, found.key, found.partition, found.headers)  # type: ignore[arg-type]
    assert isinstance(again, RawHit)


def test_a_record_in_the_wrong_partition_is_written_back() -> None:
    assert isinstance(classify(VALUE, b"shop/h", (partition_of(b"shop/h", PARTITIONS) + 1) % PARTITIONS), Rekey)


@pytest.mark.parametrize("key", [None, b"shop/h"])
def test_no_header_keeps_a_record_in_the_wrong_partition(key: bytes | None) -> None:
    right = partition_of(b"shop/h", PARTITIONS)
    headers = [*HEADERS, ("rekeyed-from", b"hits-raw/0/1")]
    found = classify(VALUE, key, (right + 1) % PARTITIONS, headers)
    assert isinstance(found, Rekey)
    assert (found.key, found.partition) == (b"shop/h", right)
    assert [value for name, value in found.headers if name == "rekeyed-from"] == [
        f"hits-raw/{(right + 1) % PARTITIONS}/42".encode()
    ]


RAW_HEADERS = st.lists(
    st.sampled_from(
        [
            *(("project", b"shop"), ("project", b"blog"), ("generated", b"hitId"), ("generated", b"")),
            *(("rekeyed-from", b"x"), ("replay-to", b"a"), ("replay-id", b"1")),
        ]
    ),
    max_size=5,
)
KEYS = st.one_of(st.none(), st.binary(max_size=12), st.binary(max_size=6).map(lambda rest: b"shop/" + rest))


@given(
    st.sampled_from([VALUE, NAMELESS, b"garbage", avro(NAMELESS, project="shop")]),
    KEYS,
    RAW_HEADERS,
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_a_record_moves_at_most_twice_in_all_and_once_per_growth_whatever_its_headers(
    value: bytes, key: bytes | None, headers: list[tuple[str, bytes]], growths: list[int]
) -> None:
    """The first move may replace invalid UTF-8 in a key, and the new key causes a second move."""
    partition, moves, ids = 0, 0, set()
    for number, partitions in enumerate(growths):
        partition = min(partition, partitions - 1)
        allowed = 2 if number == 0 else 1
        for _ in range(allowed + 1):
            found = classify_raw(value, key, headers, "hits-raw", partition, 42, partitions, {"shop", "blog"})
            if not isinstance(found, Rekey):
                break
            moves += 1
            key, partition, headers = found.key, found.partition, found.headers  # type: ignore[assignment]
        assert not isinstance(found, Rekey)
        if isinstance(found, RawHit):
            ids.add(id_of(found))
    assert moves <= len(growths) + 1
    assert len(ids) <= 1
    if moves:
        assert [name for name, _ in headers].count("rekeyed-from") == 1


def test_a_record_without_a_hit_id_gets_one_from_its_position_and_keeps_it() -> None:
    first, second = classify(NAMELESS, None, 0), classify(NAMELESS, None, 0)
    assert isinstance(first, Rekey)
    assert first == second
    again = classify(NAMELESS, first.key, first.partition, first.headers)  # type: ignore[arg-type]
    assert isinstance(again, RawHit)
    assert again.hit_id == first.key.decode().removeprefix("shop/")


def test_an_id_generated_by_the_intake_is_read_from_the_key() -> None:
    key = b"shop/made-by-intake"
    found = classify(NAMELESS, key, partition_of(key, PARTITIONS), [*HEADERS, ("generated", b"hitId")])
    assert isinstance(found, RawHit)
    assert found.hit_id == "made-by-intake"


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (VALUE, [], "unknown_project"),
        (VALUE, [("project", b"nobody")], "unknown_project"),
        (None, HEADERS, "invalid_json"),
        (b"garbage", HEADERS, "invalid_json"),
        (b'{"event":', HEADERS, "invalid_json"),
        (b'{"event":{}}', HEADERS, "invalid_hit"),
        (b"\xc3\x01rest", HEADERS, "invalid_avro"),
        (avro(b"garbage"), HEADERS, "invalid_json"),
        (avro(VALUE)[:-1], HEADERS, "invalid_avro"),
        (avro(VALUE) + b"x", HEADERS, "invalid_avro"),
        (b"\x00\x00\x00\x00\x01", HEADERS, "unsupported_format"),
    ],
)
def test_a_record_that_is_no_hit_gets_its_reason(
    value: bytes | None, headers: list[tuple[str, bytes]], reason: str
) -> None:
    found = classify(value, None, 0, headers)
    assert isinstance(found, Dead)
    assert found.reason == reason
    assert found.message
