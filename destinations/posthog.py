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
_EVENTS = {"page": "$pageview", "screen": "$screen"}
_JOINING = frozenset({"Registered", "Logged In", "Updated Profile Info", "Identified"})
"""SegmentStream's events by which an anonymous visitor becomes a known person."""


class PostHogSettings(Settings):
    """Which project."""

    api_key: str = Field(min_length=1, description="The project's API key, which begins with phc_.")
    group_type: str = Field("company", min_length=1, description="The type of the groups that group calls name.")
    host: HttpUrl = Field("https://us.i.posthog.com", description="For the EU: https://eu.i.posthog.com; or your own.")


def event(delivery: Delivery) -> Event | Skipped:
    """`uuid` comes from the hitId, the same at each attempt.

    PostHog answers 200 and drops an event without a name or a distinct_id ("Invalid events"), with a broken uuid, or above 1 MB
    ("Ingestion warnings"). Each hit has an identity, and none is that large.
    """
    hit, message = delivery.hit, delivery.message
    if not message.name:
        return Skipped("event_without_name")
    if message.type == "identify":
        return Event(hit.hitId, _body(delivery, *_identify(delivery, {"$set": message.traits})))
    if message.type == "group":
        if not message.group_id:
            return Skipped("group_without_id")
        group = {
            "$group_type": delivery.settings.group_type,
            "$group_key": message.group_id,
            "$group_set": message.traits,
        }
        return Event(hit.hitId, _body(delivery, "$groupidentify", group))
    if message.type == "alias":
        if not message.previous_id:
            return Skipped("alias_without_previous_id")
        return Event(hit.hitId, _body(delivery, "$create_alias", {"alias": message.previous_id}))
    screen = {"$screen_name": message.properties.get("name")} if message.type == "screen" else {}
    body = _body(delivery, _EVENTS.get(message.type, message.name), {**message.properties, **screen})
    if message.name in _JOINING and hit.userId and hit.anonymousId and hit.userId != hit.anonymousId:
        # Two events of the batch. PostHog joins persons by $identify and $create_alias alone.
        body = _body(delivery, *_identify(delivery, {}), of="$identify") + b"," + body
    return Event(hit.hitId, body)


def _identify(delivery: Delivery, properties: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The event that joins the anonymous and the known person; of one id alone, what sets the person's properties."""
    hit = delivery.hit
    if not hit.userId:
        return "$set", properties
    anonymous = {"$anon_distinct_id": hit.anonymousId} if hit.anonymousId and hit.anonymousId != hit.userId else {}
    return "$identify", {**properties, **anonymous}


def _body(delivery: Delivery, name: str, properties: dict[str, Any], of: str = "") -> bytes:
    """One event; `of` tells several of one hit apart."""
    hit, context, page = delivery.hit, delivery.context, delivery.message.page
    known = {
        "$ip": context.get("ip"),
        "$current_url": page.get("url"),
        "$referrer": page.get("referrer"),
        "$raw_user_agent": context.get("userAgent"),
    }
    body = {
        "event": name,
        "distinct_id": hit.userId or hit.anonymousId or "",
        "uuid": str(uuid5(_NAMESPACE, f"{of} {hit.idempotency_key}")) if of else _uuid(hit.idempotency_key),
        "timestamp": delivery.time,  # one 23 hours ahead would become that of receipt
        "properties": {
            **properties,
            "$insert_id": f"{of} {hit.idempotency_key}" if of else hit.idempotency_key,
            **{key: value for key, value in known.items() if isinstance(value, str)},
        },
    }
    return encode_json(body)


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
