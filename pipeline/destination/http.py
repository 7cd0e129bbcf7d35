"""The HTTP sink, and helpers for requests and responses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeline.destination.delivery import Delivery, Event
from pipeline.destination.outcomes import Delivered, Misconfigured, Outcome, Rejected, Retry, Skipped, Verdict

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request to a destination. Header values and the query of `url` never appear in logs."""

    method: str
    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """The response: header names in lower case, `retry-after` always in seconds, at most 64 KiB of the body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """Return the decoded body; None if it is not JSON, not UTF-8, or nested too deeply."""
        try:
            return _decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


def judge(response: HttpResponse, events: Sequence[Event] = ()) -> Outcome:
    """Return the outcome by the status alone (contract.md, section 6), for destinations that do not report errors per event.

    A rejected request of several events is sent again in halves, until the event that causes the error is found.
    """
    status = response.status
    if 200 <= status < 300:
        return Delivered()
    if status in (408, 425, 429) or status >= 500:
        retry_after = response.headers.get("retry-after", "").strip()
        return Retry(f"http_{status}", float(retry_after) if retry_after.isdigit() else None)
    if status in (401, 403, 410):
        return Misconfigured(f"the destination answers {status}; check the connection's settings")
    if 300 <= status < 400:
        # Redirects are not followed. A redirect to a new address or a login page applies to every hit.
        return Misconfigured(f"the destination answers {status}, a redirect; configure the address that it points to")
    return Rejected(f"http_{status}", f"the destination answers {status}")


def encode_json(value: Any) -> bytes:
    """Return `value` as JSON; `msgspec.Raw` parts are inserted unchanged."""
    return _encode(value)


def fitting_id(hit_id: str, fits: re.Pattern[str]) -> str:
    """Return the hitId if `fits` matches all of it, else a hash of it: 32 hex digits, the same at each attempt."""
    return hit_id if fits.fullmatch(hit_id) else hashlib.blake2b(hit_id.encode(), digest_size=16).hexdigest()


def json_list(events: Sequence[Event]) -> bytes:
    """Return the bodies of `events` as one JSON array."""
    return b"[" + b",".join(event.body for event in events) + b"]"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the destination: events and bytes per request, and events per second if it documents a rate.

    `oldest_seconds` is the maximum age of an event. It is checked before each attempt, since the destination would drop older events or
    assign a wrong date. After a backlog, an outage or a replay, such an event becomes a dead letter with the reason `too_old`.
    """

    events: int = 1
    request_bytes: int = 1_000_000
    per_second: float | None = None
    oldest_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Http:
    """The HTTP sink. `request` receives at most `limits.events` events of one group, and the current Unix time in seconds."""

    event: Callable[[Delivery], Event | Skipped | Rejected]
    request: Callable[[Sequence[Event], Any, float], HttpRequest]
    verdict: Callable[[HttpResponse, Sequence[Event]], Verdict] = judge
    limits: Limits = Limits()
