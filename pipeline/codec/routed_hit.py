"""Encodes a routed hit: the client's bytes plus the facts that the server adds (contract.md, section 2).

Only the options differ between connections, so a hit is encoded once, and options are appended per connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from pipeline.codec.hit import DecodedHit

FLAG_SENT_AT = "sent_at_unreadable"

_LONGEST_REMEMBERED = 100
"""Longest member name, in characters, whose JSON is cached."""

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=1024)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


_MILLISECONDS = tuple(f".{ms:03d}Z" for ms in range(1000))
_ENDS = frozenset(_MILLISECONDS)
FIRST_TIME_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999 in UTC."""


def time_text(time_ms: int) -> str:
    """Return ISO 8601 in UTC with milliseconds."""
    seconds, ms = divmod(time_ms, 1000)
    return _second_text(seconds) + _MILLISECONDS[ms]


_OTHER_FORM = re.compile(r"\d{4}-(?:\d\d-\d\d|W\d\d(?:-\d)?)(?:[Tt ]|$)|(?:\d{8}|\d{4}W\d\d\d?)[Tt]", re.ASCII)
"""ISO 8601 forms whose eleventh character is not T."""
_EPOCH = re.compile(r"[1-9]\d{9}(?:\d{3})?(?:\.\d{1,20})?|[1-9](?:\.\d{1,20})?[Ee]\+?(?:9|12)", re.ASCII)
_FIRST_EPOCH_MS = 10**12


def read_time(text: str) -> int | None:
    """Return ms since 1970; None if unreadable (contract.md, section 1).

    `text` is ISO 8601 with Z, offset or fraction (UTC if it has no zone), or a Unix time from 2001 to 2286 in seconds or
    milliseconds. `fromisoformat` accepts any separator, and reads 1795110112345 as 23:45 on 1795-11-01, so the shape is
    checked first. Eight digits alone may be a date or a counter, so they are unreadable.
    """
    if text[19:] in _ENDS and (second_ms := _second_ms(text[:19])) is not None:
        return second_ms + int(text[20:23])
    return _parse_time(text)


def _parse_time(text: str) -> int | None:
    if text[10:11] != "T" and not _OTHER_FORM.match(text):
        return _read_epoch(text)
    try:
        time = datetime.fromisoformat(text)
        time_ms = round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
    # Offset or rounding may move it out of the years that `time_text` can write.
    return time_ms if FIRST_TIME_MS <= time_ms <= _LAST_MS else None


def _read_epoch(text: str) -> int | None:
    if not _EPOCH.fullmatch(text):
        return None
    number = float(text)
    return round(number if number >= _FIRST_EPOCH_MS else number * 1000)


def normal_time(text: str) -> str | None:
    """Return `text` in the form of `time_text`; None if unreadable."""
    if text[19:] in _ENDS and _second_ms(text[:19]) is not None:
        return text
    time_ms = _parse_time(text)
    return None if time_ms is None else time_text(time_ms)


@lru_cache(maxsize=4096)
def _second_ms(start: str) -> int | None:
    """Return ms of the second `start` if it has the form of `time_text`, else None. Hits often share a second, so it is cached."""
    text = start + ".000Z"
    time_ms = _parse_time(text)
    return time_ms if time_ms is not None and time_text(time_ms) == text else None


@lru_cache(maxsize=4096)
def _json_text(text: str) -> bytes:
    return _encode(text)


@lru_cache(maxsize=1024)
def _project_member(project: str, is_public: bool) -> bytes:
    return b',"projectId":' + _encode(project) + (b',"door":"public"' if is_public else b"")


def encode_routed_hit(
    hit: DecodedHit,
    hit_id: str,
    project: str,
    received_at: str,
    sent_at: str,
    context: bytes,
    is_public: bool = False,
) -> bytes:
    """Return a routed hit without options, which `with_options` adds. Times are ISO 8601 texts.

    `is_public`: the hit came in by a public door. A hit of a secret door has no member `door`.
    """
    user_id, anonymous_id, integrations = hit.user_id, hit.anonymous_id, hit.integrations.raw
    plain = b"".join(
        (
            b'{"hitId":',
            _encode(hit_id),
            _project_member(project, is_public),
            f',"receivedAt":"{received_at}","sentAt":"{sent_at}"'.encode(),
            b',"userId":' + _encode(user_id) if user_id is not None else b"",
            b',"anonymousId":' + _encode(anonymous_id) if anonymous_id is not None else b"",
            b',"event":',
            hit.event,
            b',"context":',
            context,
            b',"integrations":' + integrations if integrations is not None else b"",
            b"}",
        )
    )
    return plain if not hit.extra else _with_members(plain, hit.extra)


def _with_members(plain: bytes, extra: Sequence[tuple[str, bytes]]) -> bytes:
    parts = [plain[:-1]]
    for name, value in extra:
        parts += (b",", _json_text(name) if len(name) <= _LONGEST_REMEMBERED else _encode(name), b":", value)
    return b"".join((*parts, b"}"))


def with_options(plain: bytes, options: bytes | None) -> bytes:
    """Return the routed hit `plain` with `options`, the sender's raw JSON object."""
    return plain if options is None else plain[:-1] + b',"options":' + options + b"}"
