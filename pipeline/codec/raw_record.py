"""Headers, key and partition of records of `hits-raw` (contract.md, section 2)."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline.codec.avro import Framing
from schemas import read_schema

RAW_HIT_SCHEMA = read_schema("raw_hit.avsc")
WITHOUT_REGISTRY = Framing(RAW_HIT_SCHEMA)

REKEYED_FROM = "rekeyed-from"
"""On a record that the router has written back: topic/partition/offset of the original record."""
RECEIVED_AT = "received-at"
GENERATED = "generated"
REFUSED = "refused"
"""On a message of a batch that the intake could not accept: [reason, message, path] as JSON."""
DOOR = "door"
"""The kind of door that a hit came in by: `secret` or `public`; any other value counts as public. Without it `endpoint` decides."""
SECRET, PUBLIC = b"secret", b"public"
_PUBLIC_ENDPOINTS = (b"/collect", b"/ds")
"""Public endpoints of records without the header DOOR: from other writers, and from releases that did not write it."""
REPLAY_TO = "replay-to"
REPLAY_ID = "replay-id"
"""On a hit that an operator replays to one connection: the name of the connection, and the id of the replay."""

Headers = list[tuple[str, str | bytes | None]]
RawHeaders = Sequence[tuple[str, Any]]
"""Headers as confluent_kafka returns them: values are bytes or None."""


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of `key` as librdkafka's default partitioner: CRC32 modulo the number of partitions."""
    return zlib.crc32(key) % partitions


def place_text(topic: str, partition: int, offset: int) -> str:
    """Return a record's position in the form of REKEYED_FROM. Missing hitIds are derived from it."""
    return f"{topic}/{partition}/{offset}"


def is_public(headers: RawHeaders | None) -> bool:
    """Return whether the record came in by a public door (contract.md, section 2)."""
    return names_public_door(dict(headers) if headers else {})


def project_header(headers: RawHeaders | None, projects: Collection[str]) -> str:
    """Return the project in `headers`, "" if it is not one of `projects`. Reads nothing else of the record."""
    return known_project(dict(headers) if headers else {}, projects)


def names_public_door(named: Mapping[str, Any]) -> bool:
    """Return whether the headers `named` say that the record came in by a public door; see DOOR."""
    door = named.get(DOOR)
    return door != SECRET if door else named.get("endpoint") in _PUBLIC_ENDPOINTS


def known_project(named: Mapping[str, Any], projects: Collection[str]) -> str:
    """Return the project in the headers `named`, "" if it is not one of `projects`."""
    project = header_text(named.get("project"))
    return project if project in projects and project is not None else ""


def header_text(value: bytes | None) -> str | None:
    """Return the value of a header as text; None if it is absent or empty."""
    return value.decode(errors="replace") if value else None
