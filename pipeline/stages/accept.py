"""Accept: from one request's body to the record that goes to `hits-raw`, or to a refusal that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from pipeline.codec.hit import decode_hit
from pipeline.codec.raw_record import GENERATED
from pipeline.errors import InvalidHit


@dataclass(frozen=True, slots=True)
class Request:
    """What the server knows of the request. `received_at_ms` is its clock; texts are as they came."""

    project: str
    endpoint: str
    content_type: str
    received_at_ms: int
    request_ip: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """One record of `hits-raw`: `value` are the client's bytes."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes | str | None]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer in the form of contract.md, section 1."""

    status: int
    code: str
    message: str
    path: str = ""


def uuid7(time_ms: int, random: bytes) -> str:
    """A version 7 UUID (RFC 9562, section 5.7) from ms since 1970 and ten random bytes."""
    value = int.from_bytes(time_ms.to_bytes(6, "big") + random[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


def is_json(content_type: str) -> bool:
    """`application/json`, with parameters or without."""
    return content_type.partition(";")[0].strip().lower() == "application/json"


def accept(body: bytes, request: Request, random: bytes) -> Accepted | Refusal:
    """Check one hit. `random` are ten bytes for the id of a hit that has none."""
    if not is_json(request.content_type):
        return Refusal(400, "invalid_content_type", "send the hit with Content-Type: application/json")
    try:
        hit = decode_hit(body)
    except InvalidHit as error:
        return Refusal(400, error.reason, error.message, error.path)
    headers: list[tuple[str, bytes | str | None]] = [
        ("project", request.project.encode()),
        ("received-at", b"%d" % request.received_at_ms),
        ("request-ip", request.request_ip.encode()),
        ("user-agent", request.user_agent.encode(errors="replace")),
        ("content-type", request.content_type.encode(errors="replace")),
        ("endpoint", request.endpoint.encode()),
    ]
    hit_id = hit.hit_id
    if hit_id is None:
        # Before the first produce: whatever is sent again afterwards is still the same hit.
        hit_id = uuid7(request.received_at_ms, random)
        headers.append((GENERATED, b"hitId"))
    return Accepted(f"{request.project}/{hit_id}".encode(), body, headers)
