"""Webhook: sends each routed hit as one POST request, signed as in Standard Webhooks."""

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
_MIN_SECRET_BYTES, _MAX_SECRET_BYTES = 24, 64  # Standard Webhooks, "Signature scheme"
_ID = re.compile(r"[!-\-/-~]+")
"""ASCII without a full stop. The full stop separates the id from the rest of the signed text, and senders choose the id (ibid.)."""


def _secret(value: str) -> str:
    try:
        secret = base64.b64decode(value.removeprefix(_PREFIX), validate=True)
        if not _MIN_SECRET_BYTES <= len(secret) <= _MAX_SECRET_BYTES:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"a secret is {_PREFIX} and the base64 of {_MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES} random bytes"
        ) from None
    return value


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_RESERVED_HEADERS = re.compile(
    r"content-(type|length)|transfer-encoding|connection|webhook-(id|timestamp|signature)", re.IGNORECASE
)


def _headers(headers: dict[str, str]) -> dict[str, str]:
    """Validate the headers at the start, because with an invalid one each hit would become a dead letter."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or _RESERVED_HEADERS.fullmatch(name):
            raise ValueError(f"{name!r} is not a valid header name, or reserved; use another name")
        if _CONTROL_CHARACTER.search(value):
            raise ValueError(f"{name!r} contains a control character; check whether its variable ends with a newline")
    return headers


class WebhookSettings(Settings):
    """The receiver."""

    url: HttpUrl = Field(description="The address that receives the hits.")
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = Field(
        {}, description="Headers of each request, for example an Authorization."
    )
    secrets: list[Annotated[str, AfterValidator(_secret)]] = Field(
        [],
        max_length=2,
        description="Secrets for signatures: `whsec_` and base64. Add a second secret while the receiver changes its secret.",
    )


def event(delivery: Delivery) -> Event:
    """Return the routed hit unchanged."""
    return Event(fitting_id(delivery.hit.idempotency_key, _ID), delivery.value)


def request(events: Sequence[Event], settings: WebhookSettings, now_seconds: float) -> HttpRequest:
    """Return the request. `webhook-id` is the same at each attempt; the signature covers id, time and body."""
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
    summary="Posts each routed hit to your address.",
    settings=WebhookSettings,
    sink=Http(event, request),
    documentation="https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md",
    delivery_guarantee="At least once; `webhook-id` is the hitId (its hash if it has a full stop, or is public), the same at each attempt.",
)
