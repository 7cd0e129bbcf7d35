"""PostHog: sends events to the batch API."""

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
_IDENTIFYING_EVENTS = frozenset({"Registered", "Logged In", "Updated Profile Info", "Identified"})
"""SegmentStream's events that link an anonymous id to a user id."""


class PostHogSettings(Settings):
    """The project."""

    api_key: str = Field(min_length=1, description="The project's API key, which begins with phc_.")
    group_type: str = Field("company", min_length=1, description="The type of the groups that group calls name.")
    host: HttpUrl = Field(
        "https://us.i.posthog.com", description="The server: for the EU https://eu.i.posthog.com, or your own server."
    )


def event(delivery: Delivery) -> Event | Skipped:
    """Return the event. `uuid` derives from the hitId and is the same at each attempt.

    PostHog answers 200 and drops an event without a name or distinct_id ("Invalid events"), with an invalid uuid, or above 1 MB
    ("Ingestion warnings"). Each hit has an identity, and no hit is that large.
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
    if message.name in _IDENTIFYING_EVENTS and hit.userId and hit.anonymousId and hit.userId != hit.anonymousId:
        # The hit becomes two events, because PostHog merges persons only by $identify and $create_alias.
        body = _body(delivery, *_identify(delivery, {}), id_prefix="$identify") + b"," + body
    return Event(hit.hitId, body)


def _identify(delivery: Delivery, properties: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and properties of the event that merges the two ids; without a userId, of $set, which sets properties only."""
    hit = delivery.hit
    if not hit.userId:
        return "$set", properties
    anonymous = {"$anon_distinct_id": hit.anonymousId} if hit.anonymousId and hit.anonymousId != hit.userId else {}
    return "$identify", {**properties, **anonymous}


def _body(delivery: Delivery, name: str, properties: dict[str, Any], id_prefix: str = "") -> bytes:
    """Return one event as JSON. Several events of one hit need distinct values of `id_prefix`."""
    hit, context, page = delivery.hit, delivery.context, delivery.message.page
    insert_id = f"{id_prefix} {hit.idempotency_key}" if id_prefix else hit.idempotency_key
    known = {
        "$ip": context.get("ip"),
        "$current_url": page.get("url"),
        "$referrer": page.get("referrer"),
        "$raw_user_agent": context.get("userAgent"),
    }
    body = {
        "event": name,
        "distinct_id": hit.userId or hit.anonymousId or "",
        "uuid": _uuid(insert_id) if not id_prefix else str(uuid5(_NAMESPACE, insert_id)),
        "timestamp": delivery.time,  # PostHog replaces times more than 23 hours ahead by the time of receipt
        "properties": {
            **properties,
            "$insert_id": insert_id,
            **{key: value for key, value in known.items() if isinstance(value, str)},
        },
    }
    return encode_json(body)


def _uuid(hit_id: str) -> str:
    try:
        # Two spellings of one UUID are two hits, so only the standard spelling is kept.
        if str(UUID(hit_id)) == hit_id:
            return hit_id
    except ValueError:
        pass
    return str(uuid5(_NAMESPACE, hit_id))


def request(events: Sequence[Event], settings: PostHogSettings, now_seconds: float) -> HttpRequest:
    """Return the batch request."""
    body = encode_json({"api_key": settings.api_key})[:-1] + b',"batch":' + json_list(events) + b"}"
    return HttpRequest("POST", f"{settings.host.rstrip('/')}/batch/", body, {"content-type": "application/json"})


destination = Destination(
    name="PostHog",
    summary="Sends events to a PostHog project.",
    settings=PostHogSettings,
    options=Options,
    sink=Http(event, request, limits=Limits(events=500, request_bytes=10_000_000)),
    documentation="https://posthog.com/docs/api/capture",
    delivery_guarantee="At least once; uuid derives from the hitId, and PostHog merges its repeats.",
)
