"""Slack: a message per hit, by an incoming webhook."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from pipeline.destination import (
    Delivery,
    Destination,
    Event,
    Http,
    HttpRequest,
    HttpResponse,
    HttpUrl,
    Limits,
    Misconfigured,
    Options,
    Settings,
    Verdict,
    encode_json,
    judge,
)

_TEXT_LENGTH = 40_000  # Slack cuts there ("Truncating really long messages"); so a reader sees that it was cut
_PLACE = re.compile(r"\{([A-Za-z0-9_.]+)\}")

_FIELDS = (
    *("event", "context", "hitId", "projectId", "receivedAt", "sentAt", "userId", "anonymousId"),
    *("type", "name", "time", "properties", "traits"),
)
"""Those of the hit; in the second line what every destination reads of it, whichever dialect it came in."""


class SlackSettings(Settings):
    """Where to post, and what."""

    free_texts = frozenset({"text"})

    url: HttpUrl = Field(repr=False, description="The incoming webhook.")
    text: str = Field(
        "{event.name} by {userId}",
        min_length=1,
        description="The message; {event.value} stands for that field of the hit, {properties.total} for one of its properties.",
    )

    @field_validator("text")
    @classmethod
    def _places_can_be_filled(cls, text: str) -> str:
        for place in _PLACE.findall(text):
            first = place.partition(".")[0]
            if first not in _FIELDS:
                raise ValueError(f"{{{place}}} is no field of a hit; it begins with one of {', '.join(_FIELDS)}")
        return text


def event(delivery: Delivery) -> Event:
    """The text with its places filled in."""
    hit = delivery.hit
    known: dict[str, Any] = {
        "event": delivery.event,
        "context": delivery.context,
        "hitId": hit.hitId,
        "projectId": hit.projectId,
        "receivedAt": hit.receivedAt,
        "sentAt": hit.sentAt,
        "userId": hit.userId or hit.anonymousId,
        "anonymousId": hit.anonymousId,
        "type": delivery.message.type,
        "name": delivery.name,
        "time": delivery.time,
        "properties": delivery.properties,
        "traits": delivery.message.traits,
    }

    def fill(place: re.Match[str]) -> str:
        value: Any = known
        for step in place[1].split("."):
            value = value.get(step) if isinstance(value, dict) else None
        return _escaped("?" if value is None else str(value))

    text = _PLACE.sub(fill, delivery.settings.text)
    return Event(
        hit.hitId, encode_json({"text": text if len(text) <= _TEXT_LENGTH else text[: _TEXT_LENGTH - 1] + "…"})
    )


def _escaped(text: str) -> str:
    """A hit must not be able to mention people or to link (Slack, "Formatting text")."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def request(events: Sequence[Event], settings: SlackSettings, now_seconds: float) -> HttpRequest:
    """One message."""
    return HttpRequest("POST", settings.url, events[0].body, {"content-type": "application/json"})


def verdict(response: HttpResponse, events: Sequence[Event]) -> Verdict:
    """404: the webhook or its channel is gone. The others are as everywhere: 400 is about the payload, 403 and 410 are for the operator."""
    if response.status == 404:
        return Misconfigured("Slack knows no such webhook or channel; make a new webhook")
    return judge(response, events)


destination = Destination(
    name="Slack",
    summary="A message per hit in a channel.",
    settings=SlackSettings,
    options=Options,
    sink=Http(event, request, verdict, Limits(per_second=1)),
    documentation="https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/",
    delivery_guarantee="At least once; after a crash a message may be there twice.",
)
