"""Writing a routed hit: the client's bytes with the server's facts beside them (contract.md, section 2).

All connections share everything but the options, so a hit is encoded once and each connection adds its tail.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from pipeline.codec.hit import DecodedHit

FLAG_SENT_AT = "sent_at_unreadable"

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=1024)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=4096)
def time_text(time_ms: int) -> str:
    """ISO 8601 in UTC with milliseconds."""
    seconds, ms = divmod(time_ms, 1000)
    return f"{_second_text(seconds)}.{ms:03d}Z"


def read_time(text: str) -> int | None:
    """ISO 8601 with Z, offset or fraction, UTC without a zone, as ms; None when unreadable (contract.md, section 1)."""
    try:
        time = datetime.fromisoformat(text)
        return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def normal_time(text: str) -> str | None:
    """`text` as `time_text` would write it; None when unreadable."""
    time_ms = read_time(text)
    if time_ms is None:
        return None
    if len(text) == 24 and text[23] == "Z" and text[19] == "." and text[10] == "T":
        return text
    return time_text(time_ms)


@lru_cache(maxsize=4096)
def _json_text(text: str) -> bytes:
    return _encode(text)


def encode_routed_hit(
    hit: DecodedHit, hit_id: str, project: str, received_at: str, sent_at: str, context: bytes
) -> bytes:
    """A routed hit without options, which `with_options` adds. Times are ISO 8601 texts."""
    parts = [b'{"hitId":', _encode(hit_id), b',"projectId":', _json_text(project)]
    parts.append(f',"receivedAt":"{received_at}","sentAt":"{sent_at}"'.encode())
    if hit.user_id is not None:
        parts += (b',"userId":', _encode(hit.user_id))
    if hit.anonymous_id is not None:
        parts += (b',"anonymousId":', _encode(hit.anonymous_id))
    parts += (b',"event":', bytes(hit.event), b',"context":', context)
    if hit.integrations_raw is not None:
        parts += (b',"integrations":', hit.integrations_raw)
    for name, value in hit.extra:
        parts += (b",", _json_text(name), b":", bytes(value))
    parts.append(b"}")
    return b"".join(parts)


def with_options(plain: bytes, options: bytes | None) -> bytes:
    """The routed hit `plain` for a connection with `options`, the raw JSON object of the sender."""
    return plain if options is None else plain[:-1] + b',"options":' + options + b"}"
