"""Amplitude: events by the HTTP V2 API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from pipeline.destination import (
    Delivery,
    Destination,
    Event,
    Http,
    HttpRequest,
    HttpResponse,
    Limits,
    Misconfigured,
    Options,
    Outcome,
    Rejected,
    Retry,
    Settings,
    Skipped,
    Verdict,
    encode_json,
    json_list,
    judge,
)

_REGIONS = {"us": "https://api2.amplitude.com/2/httpapi", "eu": "https://api.eu.amplitude.com/2/httpapi"}
_TEXT_CHARACTERS = 1024  # "String character limit"; longer properties are cut, a longer id would be somebody else
_REST_SECONDS = 30.0  # 30 events per second and person or device, as an average over 30 seconds ("Upload limit")


class AmplitudeSettings(Settings):
    """Which project."""

    api_key: str = Field(min_length=1, description="The project's API key.")
    region: Literal["us", "eu"] = Field("us", description="Where the project's data is kept.")
    group_type: str = Field("company", min_length=1, description="The type of the groups that group calls name.")


class AmplitudeOptions(Options):
    """What a sender may say about one hit."""

    sessionId: int | None = Field(
        None, ge=-1, description="When the session began, in ms since 1970; -1 is outside any."
    )


def event(delivery: Delivery) -> Event | Skipped | Rejected:
    """insert_id is the hitId, by which Amplitude drops repeats within 7 days."""
    hit = delivery.hit
    if not delivery.name:
        return Skipped("event_without_name")
    if max(len(hit.userId or ""), len(hit.anonymousId or "")) > _TEXT_CHARACTERS:
        return Rejected(
            "identity_too_long", f"Amplitude takes texts of {_TEXT_CHARACTERS} characters; this is another person"
        )
    said = _said(delivery)
    if isinstance(said, Skipped):
        return said
    context = delivery.context
    body: dict[str, Any] = {
        **said,
        "insert_id": hit.idempotency_key,
        "time": delivery.time_ms,
        **({"user_id": hit.userId} if hit.userId else {}),
        **({"device_id": hit.anonymousId} if hit.anonymousId else {}),
    }
    if delivery.options.sessionId is not None:
        body["session_id"] = delivery.options.sessionId
    for key, path in _CONTEXT.items():
        value = _at(context, path)
        if value is not None:
            body[key] = value
    return Event(hit.hitId, encode_json(body))


def _said(delivery: Delivery) -> dict[str, Any] | Skipped:
    """An event, or what Amplitude's SDKs send to the same address instead of the Identify and Group Identify APIs."""
    message = delivery.message
    if message.type == "identify":
        return {"event_type": "$identify", "user_properties": {"$set": message.traits}}
    if message.type == "group":
        if not message.group_id:
            return Skipped("group_without_id")
        groups = {delivery.settings.group_type: message.group_id}
        return {"event_type": "$groupidentify", "groups": groups, "group_properties": {"$set": message.traits}}
    # Two known persons become one by the User Mapping API only.
    return delivery.unsupported() or {"event_type": message.name, "event_properties": message.properties}


_CONTEXT = {
    "ip": ("ip",),
    "os_name": ("os", "name"),
    "os_version": ("os", "version"),
    "device_brand": ("device", "vendor"),
    "device_model": ("device", "model"),
    "country": ("location", "country"),
    "region": ("location", "region"),
    "city": ("location", "city"),
}


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def request(events: Sequence[Event], settings: AmplitudeSettings, now_seconds: float) -> HttpRequest:
    """`min_id_length` 1: by default Amplitude refuses ids below five characters."""
    frame = encode_json({"api_key": settings.api_key, "options": {"min_id_length": 1}})[:-1]
    body = frame + b',"events":' + json_list(events) + b"}"
    return HttpRequest("POST", _REGIONS[settings.region], body, {"content-type": "application/json"})


def verdict(response: HttpResponse, events: Sequence[Event]) -> Verdict:
    """400 names the events that are at fault by their index, and takes none; the others go again at once.

    A wrong key is a 400, too. 429 is about persons, who have rest for 30 seconds.
    """
    answer = response.json()
    if response.status == 429:
        return Retry("http_429", _REST_SECONDS)
    if response.status != 400 or not isinstance(answer, dict):
        return judge(response, events)
    if answer.get("missing_field") == "api_key" or "api key" in str(answer.get("error")).lower():
        return Misconfigured("Amplitude does not know the api_key; check the connection's settings")
    bad: dict[int, str] = {}
    for kind, fields in answer.items():
        if kind.startswith("events_") and isinstance(fields, dict):
            for name, indexes in fields.items():
                bad |= dict.fromkeys(indexes, f"{kind}: {name}")
    bad |= dict.fromkeys(answer.get("silenced_events") or (), "silenced_events: the person or device is blocked")
    if not bad:
        return judge(response, events)
    again: Outcome = Retry("batch_with_invalid_events", 0.0)
    return [Rejected("invalid_event", bad[i]) if i in bad else again for i in range(len(events))]


destination = Destination(
    name="Amplitude",
    summary="Events of an Amplitude project.",
    settings=AmplitudeSettings,
    options=AmplitudeOptions,
    sink=Http(event, request, verdict, Limits(events=1000, request_bytes=1_000_000, per_second=1000)),
    documentation="https://amplitude.com/docs/apis/analytics/http-v2",
    delivery_guarantee="At least once; insert_id is the hitId, and Amplitude drops repeats of it for 7 days.",
)
