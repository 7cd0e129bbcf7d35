"""Classifies one record of `hits-raw`, from any writer (contract.md, section 2).

Records with the same id must be in the same partition, or deduplication misses them. A record whose key or partition does not
match its id is therefore written back with the right key, to the right partition. No header can prevent that, since any writer
of hits-raw can set any header.

A record is not written back for ever. While the number of partitions is fixed, a record that was written back matches: its key
derives from the same project and hitId, and its partition from that key. So a record moves at most once for each number of
partitions that hits-raw has had (tests/unit/test_raw_record.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec

from pipeline.codec.avro import MARKER, REGISTRY_MARKER, Framing
from pipeline.codec.hit import DecodedHit, decode_hit
from pipeline.codec.raw_record import (
    GENERATED,
    RECEIVED_AT,
    REFUSED,
    REKEYED_FROM,
    REPLAY_ID,
    REPLAY_TO,
    WITHOUT_REGISTRY,
    Headers,
    RawHeaders,
    header_text,
    known_project,
    names_public_door,
    place_text,
)
from pipeline.errors import InvalidHit

_refusal = msgspec.json.Decoder(tuple[str, str, str])
_BRACE = 0x7B
_JSON_SPACE = b" \t\r\n"
_LATEST_MS = 253_402_300_799_999  # 9999-12-31, the last day of ISO 8601


class RawHit(msgspec.Struct, gc=False):
    """A valid hit in the partition of its id. `received_at_ms` is the intake's clock, None if unknown.

    `is_public`: it came in by a public door. `key_hash` is the CRC32 of the record's key. `replay_to` is the connection of a
    replay; hits of one replay are deduplicated only among themselves.
    """

    project: str
    hit_id: str
    hit: DecodedHit
    key_hash: int
    received_at_ms: int | None
    request_ip: str | None
    user_agent: str | None
    replay_to: str | None = None
    replay_id: str = ""
    is_public: bool = False

    @property
    def is_generated(self) -> bool:
        """Whether the server generated the hitId, because the sender gave none."""
        return self.hit.hit_id is None


@dataclass(slots=True)
class Rekey:
    """The value must be written back to `hits-raw` with `key` and `headers`, to `partition`.

    `is_dated` is False if no header holds the time of receipt; the append time of the original record is that time then.
    """

    key: bytes
    partition: int
    headers: Headers
    is_dated: bool = True


@dataclass(slots=True)
class Dead:
    """Not a valid hit; `project` is "" if the record names no configured project."""

    reason: str
    message: str
    path: str
    project: str


def classify_raw(
    value: bytes | None,
    key: bytes | None,
    headers: RawHeaders | None,
    topic: str,
    partition: int,
    offset: int,
    partitions: int,
    projects: Collection[str],
    framing: Framing = WITHOUT_REGISTRY,
) -> RawHit | Rekey | Dead:
    """Classify a record. `partitions` is the number of partitions of `topic`; `framing` decodes the Avro `raw_hit`.

    Pure, except that `framing` may request a schema from a registry; the errors of an unavailable registry propagate.
    """
    named = dict(headers) if headers else {}
    body = value
    if value and value[0] != _BRACE and _is_avro(value, framing):
        try:
            body = _unwrap(framing.decode(value), named)
        except ValueError as error:
            return Dead("invalid_avro", str(error), "", known_project(named, projects))
    project = header_text(named.get("project"))
    if project not in projects:
        found = "is missing" if project is None else "names no project of the configuration"
        return Dead("unknown_project", f"the header `project` {found}", "headers.project", "")
    assert project is not None
    if not body:
        return Dead("invalid_json", "the record has no value", "", project)
    if REFUSED in named:
        return Dead(*_refused(named[REFUSED]), project)
    if body[0] != _BRACE:
        body = body.lstrip(_JSON_SPACE)  # the intake accepts leading JSON white space
        if not body.startswith(b"{"):
            return Dead(*_other_format(body), "", project)
    try:
        hit = decode_hit(body)
    except InvalidHit as error:
        return Dead(error.reason, error.message, error.path, project)
    hit_id = hit.hit_id
    generated = False
    if hit_id is None:
        prefix = f"{project}/".encode()
        if named.get(GENERATED) is not None and key is not None and key.startswith(prefix) and len(key) > len(prefix):
            hit_id = key[len(prefix) :].decode(errors="replace")
        else:
            # Derived from the record's position, so that reading it again gives the same id.
            hit_id = blake2b(place_text(topic, partition, offset).encode(), digest_size=16).hexdigest()
            generated = True
    right_key = f"{project}/{hit_id}".encode()
    key_hash = zlib.crc32(right_key)
    right_partition = key_hash % partitions  # `partition_of` without the call
    if key != right_key or partition != right_partition:
        kept = [(name, text) for name, text in headers or () if name != REKEYED_FROM]
        if generated:
            kept.append((GENERATED, b"hitId"))
        kept.append((REKEYED_FROM, place_text(topic, partition, offset).encode()))
        return Rekey(right_key, right_partition, kept, RECEIVED_AT in named)
    received_at = named.get(RECEIVED_AT)
    raw = RawHit(
        project,
        hit_id,
        hit,
        key_hash,
        _milliseconds(received_at) if received_at is not None else None,
        header_text(named.get("request-ip")),
        header_text(named.get("user-agent")),
        None,
        "",
        names_public_door(named),
    )
    if REPLAY_TO in named:
        raw.replay_to, raw.replay_id = header_text(named[REPLAY_TO]), header_text(named.get(REPLAY_ID)) or ""
    return raw


def _is_avro(value: bytes, framing: Framing) -> bool:
    return value[:2] == MARKER or (value[:1] == REGISTRY_MARKER and framing is not WITHOUT_REGISTRY)


def _unwrap(raw: dict[str, Any], named: dict[str, Any]) -> bytes:
    """Return the JSON inside an Avro `raw_hit`; copy its other fields into `named` where headers are missing."""
    received_at: datetime | None = raw["received_at"]
    facts = {
        "project": raw["project"],
        RECEIVED_AT: str(round(received_at.timestamp() * 1000)) if received_at is not None else None,
        "request-ip": raw["request_ip"],
        "user-agent": raw["user_agent"],
    }
    for name, fact in facts.items():
        if fact is not None:
            named.setdefault(name, fact.encode())
    hit: bytes = raw["hit"]
    return hit


def _refused(value: bytes | None) -> tuple[str, str, str]:
    try:
        return _refusal.decode(value or b"")
    except msgspec.DecodeError:
        return "invalid_hit", "refused by the writer of the record", ""


def _milliseconds(text: bytes) -> int | None:
    """Parse `received-at` to ms since 1970. Ten digits are taken as seconds, since as ms they would lie in 1970."""
    if not text.isdigit():
        return None
    if len(text) == 13:
        return int(text)
    if len(text) > 15:
        return None
    value = int(text) * 1000 if len(text) == 10 else int(text)
    return value if value <= _LATEST_MS else None


def _other_format(value: bytes) -> tuple[str, str]:
    if not value:
        return "invalid_json", "the record holds only white space"
    if value[0] == 0:
        return "unsupported_format", "Confluent wire format, but no schema registry is configured"
    return "invalid_json", f"a hit begins with {{, this record begins with the byte {value[0]:#04x}"
