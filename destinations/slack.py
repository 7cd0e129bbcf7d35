"""Slack: posts a message per hit to an incoming webhook."""

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

_TEXT_LENGTH = 40_000
"""Slack cuts longer texts ("Truncating really long messages"). Texts that are cut here end with an ellipsis."""
_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.]+)\}")

_FIELDS = (
    "event", "context", "hitId", "projectId", "receivedAt", "sentAt", "userId", "anonymousId",
    "type", "name", "time", "properties", "traits",
)  # fmt: skip
"""Fields of the hit; the second line holds those that are the same in both dialects."""


class SlackSettings(Settings):
    """The webhook and the text."""

    free_texts = frozenset({"text"})

    url: HttpUrl = Field(repr=False, description="The address of the incoming webhook.")
    text: str = Field(
        "{event.name} by {userId}",
        min_length=1,
        description="The message. {event.value} inserts that field of the hit, {properties.total} one of its properties.",
    )

    @field_validator("text")
    @classmethod
    def _placeholders_are_known(cls, text: str) -> str:
        for placeholder in _PLACEHOLDER.findall(text):
            if placeholder.partition(".")[0] not in _FIELDS:
                raise ValueError(
                    f"{{{placeholder}}} is not a field of a hit; begin it with one of {', '.join(_FIELDS)}"
                )
        return text


def event(delivery: Delivery) -> Event:
    """Return the text with its placeholders replaced."""
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

    def replace(placeholder: re.Match[str]) -> str:
        value: Any = known
        for key in placeholder[1].split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return _escaped("?" if value is None else str(value))

    text = _PLACEHOLDER.sub(replace, delivery.settings.text)
    return Event(
        hit.hitId, encode_json({"text": text if len(text) <= _TEXT_LENGTH else text[: _TEXT_LENGTH - 1] + "…"})
    )


def _escaped(text: str) -> str:
    """Return `text` escaped, so that a hit cannot mention people or add links (Slack, "Formatting text")."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def request(events: Sequence[Event], settings: SlackSettings, now_seconds: float) -> HttpRequest:
    """Return the request for one message."""
    return HttpRequest("POST", settings.url, events[0].body, {"content-type": "application/json"})


def verdict(response: HttpResponse, events: Sequence[Event]) -> Verdict:
    """Return the outcome. 404 means that the webhook or its channel no longer exists; other statuses have their usual meaning."""
    if response.status == 404:
        return Misconfigured("the Slack webhook or its channel does not exist; create a new webhook")
    return judge(response, events)


destination = Destination(
    name="Slack",
    summary="Posts a message per hit to a channel.",
    settings=SlackSettings,
    options=Options,
    sink=Http(event, request, verdict, Limits(per_second=1)),
    documentation="https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/",
    delivery_guarantee="At least once; after a crash a message can appear twice.",
)
