"""Writing a routed hit: the client's bytes with the server's facts beside them (contract.md, section 2).

All connections share everything but the options, so a hit is encoded once and each connection adds its tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from pipeline.codec.hit import DecodedHit

FLAG_SENT_AT = "sent_at_unreadable"

_LONGEST_REMEMBERED = 100
"""Characters of a member's name."""

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=1024)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


_MILLISECONDS = tuple(f".{ms:03d}Z" for ms in range(1000))
_ENDS = frozenset(_MILLISECONDS)
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999 in UTC."""


def time_text(time_ms: int) -> str:
    """ISO 8601 in UTC with milliseconds."""
    seconds, ms = divmod(time_ms, 1000)
    return _second_text(seconds) + _MILLISECONDS[ms]


def read_time(text: str) -> int | None:
    """ISO 8601 with Z, offset or fraction, UTC without a zone, as ms; None when unreadable (contract.md, section 1)."""
    try:
        time = datetime.fromisoformat(text)
        time_ms = round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
    # Its offset or its fraction may carry it out of the years that `time_text` can write.
    return time_ms if _FIRST_MS <= time_ms <= _LAST_MS else None


def normal_time(text: str) -> str | None:
    """`text` as `time_text` would write it; None when unreadable."""
    if text[19:] in _ENDS and _is_second(text[:19]):
        return text
    time_ms = read_time(text)
    return None if time_ms is None else time_text(time_ms)


@lru_cache(maxsize=4096)
def _is_second(start: str) -> bool:
    """Whether `start`, a point, three digits and Z are a time as `time_text` writes it; hits share seconds, not more."""
    text = start + ".999Z"
    time_ms = read_time(text)
    return time_ms is not None and time_text(time_ms) == text


@lru_cache(maxsize=4096)
def _json_text(text: str) -> bytes:
    return _encode(text)


@lru_cache(maxsize=1024)
def _project_member(project: str) -> bytes:
    return b',"projectId":' + _encode(project)


def encode_routed_hit(
    hit: DecodedHit, hit_id: str, project: str, received_at: str, sent_at: str, context: bytes
) -> bytes:
    """A routed hit without options, which `with_options` adds. Times are ISO 8601 texts."""
    user_id, anonymous_id, integrations = hit.user_id, hit.anonymous_id, hit.integrations_raw
    plain = b"".join(
        (
            b'{"hitId":',
            _encode(hit_id),
            _project_member(project),
            f',"receivedAt":"{received_at}","sentAt":"{sent_at}"'.encode(),
            b',"userId":' + _encode(user_id) if user_id is not None else b"",
            b',"anonymousId":' + _encode(anonymous_id) if anonymous_id is not None else b"",
            b',"event":',
            hit.event,  # type: ignore[arg-type] # `join` takes a Raw as it takes bytes: a copy less
            b',"context":',
            context,
            b',"integrations":' + integrations if integrations is not None else b"",
            b"}",
        )
    )
    return plain if not hit.extra else _with_members(plain, hit.extra)


def _with_members(plain: bytes, extra: Sequence[tuple[str, msgspec.Raw]]) -> bytes:
    parts = [plain[:-1]]
    for name, value in extra:
        parts += (b",", _json_text(name) if len(name) <= _LONGEST_REMEMBERED else _encode(name), b":", bytes(value))
    return b"".join((*parts, b"}"))


def with_options(plain: bytes, options: bytes | None) -> bytes:
    """The routed hit `plain` for a connection with `options`, the raw JSON object of the sender."""
    return plain if options is None else plain[:-1] + b',"options":' + options + b"}"
