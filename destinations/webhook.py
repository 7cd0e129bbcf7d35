"""Webhook: each routed hit as one POST request, signed as Standard Webhooks has it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.destination import Delivery, Destination, Event, Http, HttpRequest, HttpUrl, Settings, fitting_id

_PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64  # Standard Webhooks, "Signature scheme"
_ID = re.compile(r"[!-\-/-~]+")
"""ASCII without a full stop: that separates the id from the rest of what is signed, and the sender chooses the id (ibidem)."""


def _secret(value: str) -> str:
    try:
        if not _LEAST_BYTES <= len(base64.b64decode(value.removeprefix(_PREFIX), validate=True)) <= _MOST_BYTES:
            raise ValueError
    except ValueError:
        raise ValueError(f"a secret is {_PREFIX} and base64 of {_LEAST_BYTES} to {_MOST_BYTES} random bytes") from None
    return value


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OURS = re.compile(
    r"content-(type|length)|transfer-encoding|connection|webhook-(id|timestamp|signature)", re.IGNORECASE
)


def _headers(headers: dict[str, str]) -> dict[str, str]:
    """Told at the start: else each hit would be a dead letter."""
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or _OURS.fullmatch(name):
            raise ValueError(f"{name!r} can't be a header of yours")
        if _CONTROL.search(value):
            raise ValueError(f"{name!r} has a character of control in it; does its variable end with a new line?")
    return headers


class WebhookSettings(Settings):
    """Where to post."""

    url: HttpUrl = Field(description="The address that takes the hits.")
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = Field(
        {}, description="Sent with each request, for example an Authorization."
    )
    secrets: list[Annotated[str, AfterValidator(_secret)]] = Field(
        [], max_length=2, description="`whsec_` and base64; the second one while a receiver changes over."
    )


def event(delivery: Delivery) -> Event:
    """The routed hit as it is."""
    return Event(fitting_id(delivery.hit.idempotency_key, _ID), delivery.value)


def request(events: Sequence[Event], settings: WebhookSettings, now_seconds: float) -> HttpRequest:
    """`webhook-id` is the same at each attempt; the signature covers id, time and body."""
    (only,) = events
    headers = {
        **settings.headers,
        "content-type": "application/json",
        "webhook-id": only.hit_id,
        "webhook-timestamp": str(int(now_seconds)),
    }
    if settings.secrets:
        signed = f"{only.hit_id}.{int(now_seconds)}.".encode() + only.body
        headers["webhook-signature"] = " ".join(_signature(secret, signed) for secret in settings.secrets)
    return HttpRequest("POST", settings.url, only.body, headers)


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


destination = Destination(
    name="Webhook",
    summary="Posts each routed hit to an address of yours.",
    settings=WebhookSettings,
    sink=Http(event, request),
    documentation="https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md",
    delivery_guarantee="At least once; `webhook-id` is the hitId (or a hash: full stop, public door), the same at each attempt.",
)
