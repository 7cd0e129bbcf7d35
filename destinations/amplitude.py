"""Amplitude: sends events to the HTTP V2 API."""

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
_MAX_TEXT_CHARACTERS = 1024  # "String character limit"; Amplitude cuts longer texts, and a cut id is another person's
_RATE_LIMIT_SECONDS = 30.0  # 30 events per second and person or device, as an average over 30 seconds ("Upload limit")


class AmplitudeSettings(Settings):
    """The project."""

    api_key: str = Field(min_length=1, description="The project's API key.")
    region: Literal["us", "eu"] = Field("us", description="Where the project's data is stored.")
    group_type: str = Field("company", min_length=1, description="The type of the groups that group calls name.")


class AmplitudeOptions(Options):
    """The sender's options for one hit."""

    sessionId: int | None = Field(
        None, ge=-1, description="Start of the session in ms since 1970; -1 means outside any session."
    )


def event(delivery: Delivery) -> Event | Skipped | Rejected:
    """Return the event. Amplitude drops repeats of insert_id, which is the hitId, for 7 days."""
    hit = delivery.hit
    if not delivery.name:
        return Skipped("event_without_name")
    if max(len(hit.userId or ""), len(hit.anonymousId or "")) > _MAX_TEXT_CHARACTERS:
        return Rejected(
            "identity_too_long", f"Amplitude cuts ids after {_MAX_TEXT_CHARACTERS} characters; send a shorter id"
        )
    content = _content(delivery)
    if isinstance(content, Skipped):
        return content
    context = delivery.context
    body: dict[str, Any] = {
        **content,
        "insert_id": hit.idempotency_key,
        "time": delivery.time_ms,
        **({"user_id": hit.userId} if hit.userId else {}),
        **({"device_id": hit.anonymousId} if hit.anonymousId else {}),
    }
    if delivery.options.sessionId is not None:
        body["session_id"] = delivery.options.sessionId
    for key, path in _CONTEXT.items():
        value = _value_at(context, path)
        if value is not None:
            body[key] = value
    return Event(hit.hitId, encode_json(body))


def _content(delivery: Delivery) -> dict[str, Any] | Skipped:
    """Return type and properties of the event. Identify and group calls become the events that Amplitude's SDKs send for them."""
    message = delivery.message
    if message.type == "identify":
        return {"event_type": "$identify", "user_properties": {"$set": message.traits}}
    if message.type == "group":
        if not message.group_id:
            return Skipped("group_without_id")
        groups = {delivery.settings.group_type: message.group_id}
        return {"event_type": "$groupidentify", "groups": groups, "group_properties": {"$set": message.traits}}
    # Alias calls are unsupported: Amplitude merges two known persons only by the User Mapping API.
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


def _value_at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def request(events: Sequence[Event], settings: AmplitudeSettings, now_seconds: float) -> HttpRequest:
    """Return the request. `min_id_length` is 1, because by default Amplitude refuses ids below five characters."""
    envelope = encode_json({"api_key": settings.api_key, "options": {"min_id_length": 1}})[:-1]
    body = envelope + b',"events":' + json_list(events) + b"}"
    return HttpRequest("POST", _REGIONS[settings.region], body, {"content-type": "application/json"})


def verdict(response: HttpResponse, events: Sequence[Event]) -> Verdict:
    """Return the outcomes. A 400 names invalid events by index and stores none, so the valid ones are sent again at once.

    A wrong api_key is a 400, too. 429 means too many events of one person or device, so it pauses for 30 seconds.
    """
    content = response.json()
    if response.status == 429:
        return Retry("http_429", _RATE_LIMIT_SECONDS)
    if response.status != 400 or not isinstance(content, dict):
        return judge(response, events)
    if content.get("missing_field") == "api_key" or "api key" in str(content.get("error")).lower():
        return Misconfigured("Amplitude does not know the api_key; check the connection's settings")
    invalid: dict[int, str] = {}
    for kind, fields in content.items():
        if kind.startswith("events_") and isinstance(fields, dict):
            for name, indexes in fields.items():
                invalid |= dict.fromkeys(indexes, f"{kind}: {name}")
    invalid |= dict.fromkeys(content.get("silenced_events") or (), "silenced_events: the person or device is blocked")
    if not invalid:
        return judge(response, events)
    send_again: Outcome = Retry("batch_with_invalid_events", 0.0)
    return [Rejected("invalid_event", invalid[i]) if i in invalid else send_again for i in range(len(events))]


destination = Destination(
    name="Amplitude",
    summary="Sends events to an Amplitude project.",
    settings=AmplitudeSettings,
    options=AmplitudeOptions,
    sink=Http(event, request, verdict, Limits(events=1000, request_bytes=1_000_000, per_second=1000)),
    documentation="https://amplitude.com/docs/apis/analytics/http-v2",
    delivery_guarantee="At least once; insert_id is the hitId, and Amplitude drops its repeats for 7 days.",
)
