"""Segment: sends calls to a source by the HTTP tracking API."""

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
from pipeline.destination.message import RENAMED, stored_name

_EVENT_BYTES = 32_000
_MESSAGE_ID = re.compile(r".{1,99}", re.DOTALL)
_IDENTIFY_EVENTS = frozenset({"Updated Profile Info", "Identified"})
_OMITTED_MEMBERS = frozenset({
    "name", "type", "user", "event", "timestamp", "originalTimestamp", "receivedAt", "sentAt",
    "messageId", "userId", "anonymousId", "context", "integrations", "writeKey",
})  # fmt: skip
"""Members of a stored Segment message that are not copied: this file sets them, or Segment would act on them (`integrations`,
`writeKey`)."""


class SegmentSettings(Settings):
    """The source."""

    write_key: str = Field(min_length=1, description="The source's write key.")
    endpoint: HttpUrl = Field(
        "https://api.segment.io/v1/batch",
        description="The address of the API; for the EU https://events.eu1.segmentapis.com/v1/batch.",
    )


def event(delivery: Delivery) -> Event | Rejected | Skipped:
    """Return the call. Segment drops repeats of messageId, which is the hitId.

    A Segment message keeps its type. Without a sentAt, Segment does not correct the timestamp. Segment answers 200 and drops a track
    call without a name, and a call without userId and anonymousId ("Errors"); each hit has one of the two.
    """
    hit, message = delivery.hit, delivery.message
    if not message.name:
        return Skipped("event_without_name")
    call: dict[str, Any] = {
        "type": message.type,
        "messageId": fitting_id(hit.idempotency_key, _MESSAGE_ID),
        "timestamp": message.time,
        "context": hit.context,
        **({"userId": hit.userId} if hit.userId else {}),
        **({"anonymousId": hit.anonymousId} if hit.anonymousId else {}),
    }
    if message.is_segment:
        names = {stored_name(delivery.event, stored): name for name, stored in RENAMED.items()}
        call |= {names.get(key, key): value for key, value in delivery.event.items() if key not in _OMITTED_MEMBERS}
        if message.type == "track":
            call["event"] = message.name
    elif message.name in _IDENTIFY_EVENTS:
        call |= {"type": "identify", "traits": message.user}
    else:
        call["properties"] = message.properties
        call |= {"event": message.name} if message.type == "track" else {"name": message.page.get("title") or ""}
    body = encode_json(call)
    if len(body) > _EVENT_BYTES:
        return Rejected("too_large", f"{len(body)} bytes; Segment accepts at most {_EVENT_BYTES} per event")
    return Event(hit.hitId, body)


def request(events: Sequence[Event], settings: SegmentSettings, now_seconds: float) -> HttpRequest:
    """Return the batch request."""
    key = base64.b64encode(f"{settings.write_key}:".encode()).decode()
    headers = {"content-type": "application/json", "authorization": f"Basic {key}"}
    return HttpRequest("POST", settings.endpoint, b'{"batch":' + json_list(events) + b"}", headers)


destination = Destination(
    name="Segment",
    summary="Sends calls to a Segment source: track, page, screen, identify, group and alias.",
    settings=SegmentSettings,
    sink=Http(event, request, limits=Limits(events=100, request_bytes=500_000, per_second=1000)),
    documentation="https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/",
    delivery_guarantee="At least once; messageId is the hitId (its hash from 100 characters on), and Segment drops its repeats.",
)
