"""Segment: events of a source, by its HTTP tracking API."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from pipeline.destination import (
    Delivery,
    Destination,
    Event,
    Http,
    HttpRequest,
    HttpUrl,
    Limits,
    Rejected,
    Settings,
    Skipped,
    encode_json,
    fitting_id,
    json_list,
)

_EVENT_BYTES = 32_000
_MESSAGE_ID = re.compile(r".{1,99}", re.DOTALL)
_PAGES = frozenset({"Viewed Page"})
_PEOPLE = frozenset({"Updated Profile Info", "Identified"})


class SegmentSettings(Settings):
    """Which source."""

    write_key: str = Field(min_length=1, description="The source's write key.")
    endpoint: HttpUrl = Field(
        "https://api.segment.io/v1/batch", description="For the EU: https://events.eu1.segmentapis.com/v1/batch."
    )


def event(delivery: Delivery) -> Event | Rejected | Skipped:
    """A track, page or identify call; messageId is the hitId, by which Segment drops repeats.

    Segment answers 200 and drops a track call without a name and a message without userId and anonymousId ("Errors"). Each hit has one
    of the latter.
    """
    hit, name = delivery.hit, delivery.name
    if not name:
        return Skipped("event_without_name")
    kind = "page" if name in _PAGES else "identify" if name in _PEOPLE else "track"
    message: dict[str, Any] = {
        "type": kind,
        "messageId": fitting_id(hit.idempotency_key, _MESSAGE_ID),
        "timestamp": hit.sentAt,
        "context": hit.context,
        **({"userId": hit.userId} if hit.userId else {}),
        **({"anonymousId": hit.anonymousId} if hit.anonymousId else {}),
    }
    if kind == "identify":
        message["traits"] = delivery.event.get("user") or {}
    else:
        message["properties"] = delivery.properties
        message |= {"event": name} if kind == "track" else {"name": delivery.at("page", "title") or ""}
    body = encode_json(message)
    if len(body) > _EVENT_BYTES:
        return Rejected("too_large", f"{len(body)} bytes; Segment takes {_EVENT_BYTES} an event")
    return Event(hit.hitId, body)


def request(events: Sequence[Event], settings: SegmentSettings, now_seconds: float) -> HttpRequest:
    """One batch call."""
    key = base64.b64encode(f"{settings.write_key}:".encode()).decode()
    headers = {"content-type": "application/json", "authorization": f"Basic {key}"}
    return HttpRequest("POST", settings.endpoint, b'{"batch":' + json_list(events) + b"}", headers)


destination = Destination(
    name="Segment",
    summary="Track, page and identify calls of a Segment source.",
    settings=SegmentSettings,
    sink=Http(event, request, limits=Limits(events=100, request_bytes=500_000, per_second=1000)),
    documentation="https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/",
    delivery_guarantee="At least once; messageId is the hitId (from 100 characters on a hash), and Segment drops repeats of it.",
)
