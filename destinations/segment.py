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
from pipeline.message import RENAMED, stored_name

_EVENT_BYTES = 32_000
_MESSAGE_ID = re.compile(r".{1,99}", re.DOTALL)
_PEOPLE = frozenset({"Updated Profile Info", "Identified"})
_LEFT_OUT = frozenset(
    {
        *("name", "type", "user", "event", "timestamp", "originalTimestamp", "receivedAt", "sentAt"),
        *("messageId", "userId", "anonymousId", "context", "integrations", "writeKey"),
    }
)
"""Of a stored Segment message: the router gives these itself, or Segment would obey them (`integrations`, `writeKey`)."""


class SegmentSettings(Settings):
    """Which source."""

    write_key: str = Field(min_length=1, description="The source's write key.")
    endpoint: HttpUrl = Field(
        "https://api.segment.io/v1/batch", description="For the EU: https://events.eu1.segmentapis.com/v1/batch."
    )


def event(delivery: Delivery) -> Event | Rejected | Skipped:
    """A call of Segment; messageId is the hitId, by which Segment drops repeats.

    What came as a Segment message goes on as one of the same type. Without a sentAt Segment takes the timestamp as it is.
    Segment answers 200 and drops a track call without a name and a message without userId and anonymousId ("Errors"). Each hit has one
    of the latter.
    """
    hit, said = delivery.hit, delivery.message
    kind = said.type
    if not said.name:
        return Skipped("event_without_name")
    message: dict[str, Any] = {
        "type": kind,
        "messageId": fitting_id(hit.idempotency_key, _MESSAGE_ID),
        "timestamp": said.time,
        "context": hit.context,
        **({"userId": hit.userId} if hit.userId else {}),
        **({"anonymousId": hit.anonymousId} if hit.anonymousId else {}),
    }
    if said.is_segment:
        own = {stored_name(delivery.event, stored): name for name, stored in RENAMED.items()}
        message |= {own.get(key, key): value for key, value in delivery.event.items() if key not in _LEFT_OUT}
        if kind == "track":
            message["event"] = said.name
    elif said.name in _PEOPLE:
        message |= {"type": "identify", "traits": said.user}
    else:
        message["properties"] = said.properties
        message |= {"event": said.name} if kind == "track" else {"name": said.page.get("title") or ""}
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
    summary="Calls of a Segment source: track, page, screen, identify, group and alias.",
    settings=SegmentSettings,
    sink=Http(event, request, limits=Limits(events=100, request_bytes=500_000, per_second=1000)),
    documentation="https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/",
    delivery_guarantee="At least once; messageId is the hitId (from 100 characters on a hash), and Segment drops repeats of it.",
)
