"""The results of all dialects of the intake: records of `hits-raw` and refusals (contract.md, sections 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

import msgspec

from pipeline.codec.raw_record import DOOR, GENERATED, PUBLIC, REFUSED, Headers, is_public
from pipeline.errors import InvalidHit

Random = Callable[[int], bytes]
"""Returns as many random bytes."""


class Code(StrEnum):
    """Every reason for a refused request; also the label of the counter of refusals."""

    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TOO_LARGE = "too_large"
    INVALID_REQUEST = "invalid_request"
    INVALID_JSON = "invalid_json"
    INVALID_CONTENT_TYPE = "invalid_content_type"
    INVALID_CONTENT_ENCODING = "invalid_content_encoding"
    INVALID_HIT = "invalid_hit"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    COLLECT_DISABLED = "collect_disabled"
    TOO_MANY_REQUESTS = "too_many_requests"
    UNAVAILABLE = "unavailable"


class Sender(NamedTuple):
    """The project of a request. `is_public`: it came in by a public door, which strangers can use (contract.md, section 1)."""

    project: str
    is_public: bool


class Request(msgspec.Struct, frozen=True, gc=False):
    """The facts of a request. `sender` has no project if the body names it; `received_at_ms` is the server's clock.

    `origin` is that of the page, "" if there is none. `query` is the raw query string. Texts are unchanged; the address is
    anonymised if configured.
    """

    sender: Sender
    endpoint: str
    content_type: str
    received_at_ms: int
    request_ip: str
    user_agent: str
    query: str = ""
    origin: str = ""


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """One record of `hits-raw`."""

    key: bytes
    value: bytes
    headers: Headers
    project: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal in the form of contract.md, section 1. `allow` lists the allowed methods, for a 405.

    `project` is set if only the body names it. `retry_after_seconds` is for a 429.
    """

    status: int
    code: Code
    message: str
    path: str = ""
    allow: str = ""
    project: str = ""
    retry_after_seconds: int = 0


Outcome = Accepted | Sequence[Accepted] | Refusal


def refusal_of(error: InvalidHit, project: str = "") -> Refusal:
    """Return the refusal of an invalid hit."""
    return Refusal(400, Code(error.reason), error.message, error.path, project=project)


def uuid7(time_ms: int, random: bytes) -> str:
    """Return a version 7 UUID (RFC 9562, section 5.7) from ms since 1970 and ten random bytes."""
    value = int.from_bytes(time_ms.to_bytes(6, "big") + random[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


def record_of(body: bytes, hit_id: str | None, request: Request, sender: Sender, random: Random) -> Accepted:
    """Return the record of a valid hit. A missing hitId is generated here, before the first produce, so retries keep it."""
    headers = headers_of(request, sender)
    project = sender.project
    if hit_id is None:
        hit_id = uuid7(request.received_at_ms, random(10))
        headers.append((GENERATED, b"hitId"))
    return Accepted(f"{project}/{hit_id}".encode(), body, headers, project)


def refused_record(body: bytes, error: InvalidHit, request: Request, sender: Sender, random: Random) -> Accepted:
    """Return the record of an invalid message of a batch; the router turns it into a dead letter with the reason."""
    headers = headers_of(request, sender)
    project = sender.project
    texts = error.message[:_SAID_CHARACTERS], error.path[:_SAID_CHARACTERS]  # a path may be as long as the message
    headers.append((REFUSED, msgspec.json.encode((error.reason, *texts))))
    return Accepted(f"{project}/{uuid7(request.received_at_ms, random(10))}".encode(), body, headers, project)


def sender_of(record: Accepted) -> Sender:
    """Return the sender of a record, for requests whose project only the body names."""
    return Sender(record.project, is_public(record.headers))


def bytes_of(headers: Headers) -> int:
    """Return the bytes of names and values."""
    return sum(len(name) + len(value or b"") for name, value in headers)


def headers_of(request: Request, sender: Sender) -> Headers:
    """Return the headers that all records of the request share."""
    make = _facts if len(request.user_agent) + len(request.content_type) <= _REMEMBERED_CHARACTERS else _make_facts
    facts = make(sender, request.request_ip, request.user_agent, request.content_type, request.endpoint)
    return [("received-at", b"%d" % request.received_at_ms), *facts]


def _make_facts(sender: Sender, request_ip: str, user_agent: str, content_type: str, endpoint: str) -> Headers:
    """Return the headers that are equal for all requests of a client; cached."""
    headers: Headers = [
        ("project", sender.project.encode()),
        ("request-ip", request_ip.encode()),
        ("user-agent", user_agent.encode(errors="replace")),
        ("content-type", content_type.encode(errors="replace")),
        ("endpoint", endpoint.encode()),
    ]
    return [*headers, (DOOR, PUBLIC)] if sender.is_public else headers


_facts = lru_cache(4096)(_make_facts)
_SAID_CHARACTERS = 500
"""Most characters of a reason's texts: as many as a dead letter keeps, and few enough for a Kafka record."""
_REMEMBERED_CHARACTERS = 1_000
"""Largest cached user agent and content type, in characters; browsers send half as much."""
