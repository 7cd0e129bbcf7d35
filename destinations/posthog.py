"""PostHog: events by the batch API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid5

from pydantic import Field

from pipeline.destination import (
    Delivery,
    Destination,
    Event,
    Http,
    HttpRequest,
    HttpUrl,
    Limits,
    Options,
    Settings,
    Skipped,
    encode_json,
    json_list,
)

_NAMESPACE = UUID("b0b5e7a6-6d1c-5f0e-9c66-6f1d3c3a0d52")
_EVENTS = {"Viewed Page": "$pageview"}


class PostHogSettings(Settings):
    """Which project."""

    api_key: str = Field(min_length=1, description="The project's API key, which begins with phc_.")
    host: HttpUrl = Field("https://us.i.posthog.com", description="For the EU: https://eu.i.posthog.com; or your own.")


def event(delivery: Delivery) -> Event | Skipped:
    """`uuid` comes from the hitId, the same at each attempt.

    PostHog answers 200 and drops an event without a name or a distinct_id ("Invalid events"), with a broken uuid, or above 1 MB
    ("Ingestion warnings"). Each hit has an identity, and none is that large.
    """
    hit, context = delivery.hit, delivery.context
    if not delivery.name:
        return Skipped("event_without_name")
    known = {
        "$ip": context.get("ip"),
        "$current_url": delivery.message.page.get("url"),
        "$referrer": delivery.message.page.get("referrer"),
        "$raw_user_agent": context.get("userAgent"),
        "$anon_distinct_id": hit.anonymousId if hit.userId else None,
    }
    properties: dict[str, Any] = {
        **delivery.properties,
        "$insert_id": hit.idempotency_key,
        **{key: value for key, value in known.items() if isinstance(value, str)},
    }
    body = {
        "event": _EVENTS.get(delivery.name, delivery.name),
        "distinct_id": hit.userId or hit.anonymousId or "",
        "uuid": _uuid(hit.idempotency_key),
        "timestamp": delivery.time,  # one 23 hours ahead would become that of receipt
        "properties": properties,
    }
    return Event(hit.hitId, encode_json(body))


def _uuid(hit_id: str) -> str:
    try:
        if str(UUID(hit_id)) == hit_id:  # else two ways to write a UUID, which are two hits, would be one event
            return hit_id
    except ValueError:
        pass
    return str(uuid5(_NAMESPACE, hit_id))


def request(events: Sequence[Event], settings: PostHogSettings, now_seconds: float) -> HttpRequest:
    """One batch call."""
    body = encode_json({"api_key": settings.api_key})[:-1] + b',"batch":' + json_list(events) + b"}"
    return HttpRequest("POST", f"{settings.host.rstrip('/')}/batch/", body, {"content-type": "application/json"})


destination = Destination(
    name="PostHog",
    summary="Events of a PostHog project.",
    settings=PostHogSettings,
    options=Options,
    sink=Http(event, request, limits=Limits(events=500, request_bytes=10_000_000)),
    documentation="https://posthog.com/docs/api/capture",
    delivery_guarantee="At least once; uuid comes from the hitId, by which PostHog merges repeats.",
)
