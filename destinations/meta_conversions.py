"""Meta Conversions API: web events of a pixel, sent by the server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from pipeline.destination import (
    Delivery,
    Destination,
    Event,
    Http,
    HttpRequest,
    Limits,
    Options,
    Settings,
    Skipped,
    encode_json,
    json_list,
)

_EVENTS: Mapping[str, str] = {
    "Viewed Page": "PageView",
    "Viewed Product Detail": "ViewContent",
    "Searched Products": "Search",
    "Added Product": "AddToCart",
    "Added Product to Wishlist": "AddToWishlist",
    "Viewed Checkout Step": "InitiateCheckout",
    "Completed Transaction": "Purchase",
    "Registered": "CompleteRegistration",
    "Subscribed": "Subscribe",
    "Submitted Lead": "Lead",
}
_OLDEST_SECONDS = 7 * 24 * 3600  # one older event fails its whole request ("Server Event Parameters", event_time)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class MetaSettings(Settings):
    """Which pixel."""

    pixel_id: str = Field(pattern=r"^\d+$", description="The pixel's (dataset's) number.")
    access_token: str = Field(min_length=1, description="Made in the Events Manager, Settings, Conversions API.")
    api_version: str = Field("v21.0", pattern=r"^v\d+\.\d$", description="Of the Graph API.")
    test_event_code: str | None = Field(None, description="Shows the events under Test events.")


class MetaOptions(Options):
    """What a sender may say about one hit."""

    fbp: str | None = Field(None, description="The browser's _fbp cookie.")
    fbc: str | None = Field(None, description="The browser's _fbc cookie.")


def event(delivery: Delivery) -> Event | Skipped:
    """event_id is the hitId, by which Meta drops repeats, also of the browser's pixel, for 48 hours."""
    hit, context = delivery.hit, delivery.context
    if not delivery.name:
        return Skipped("event_without_name")
    body: dict[str, Any] = {
        "event_name": _EVENTS.get(delivery.name, delivery.name),
        "event_time": delivery.sent_ms // 1000,
        "event_id": hit.hitId,
        "action_source": "website",
        "user_data": _person(delivery),
    }
    url = delivery.at("page", "url")
    if isinstance(url, str):
        body["event_source_url"] = url
    custom = _custom(delivery)
    if custom:
        body["custom_data"] = custom
    if not isinstance(context.get("userAgent"), str):
        return Skipped("no_user_agent")  # Meta requires client_user_agent of a website's event
    return Event(hit.hitId, encode_json(body))


def _person(delivery: Delivery) -> dict[str, Any]:
    hit, context, options = delivery.hit, delivery.context, delivery.options
    user = delivery.event.get("user")
    user = user if isinstance(user, dict) else {}
    found: dict[str, Any] = {
        "external_id": [_hashed(identity) for identity in (hit.userId, hit.anonymousId) if identity],
        "client_ip_address": context.get("ip"),
        "client_user_agent": context.get("userAgent"),
        "fbp": options.fbp,
        "fbc": options.fbc,
    }
    for key, name in (("em", "email"), ("fn", "firstName"), ("ln", "lastName")):
        if isinstance(user.get(name), str) and user[name].strip():
            found[key] = [_hashed(user[name])]
    if isinstance(user.get("phone"), str):
        found["ph"] = [_hashed(re.sub(r"\D", "", user["phone"]).lstrip("0"))]
    return {key: value for key, value in found.items() if value}


def _hashed(text: str) -> str:
    """SHA-256 of the normalised text; what is a hash already stays."""
    normal = text.strip().lower()
    return normal if _SHA256.fullmatch(normal) else hashlib.sha256(normal.encode()).hexdigest()


def _custom(delivery: Delivery) -> dict[str, Any]:
    transaction = delivery.event.get("transaction")
    source = transaction if isinstance(transaction, dict) else delivery.event
    found = {
        "value": source.get("total", source.get("revenue", source.get("value"))),
        "currency": source.get("currency"),
        "order_id": source.get("orderId", source.get("id")) if source is transaction else None,
    }
    return {key: value for key, value in found.items() if isinstance(value, str | int | float) and value != ""}


def request(events: Sequence[Event], settings: MetaSettings, now_seconds: float) -> HttpRequest:
    """The token goes into the body, so that no log of a proxy sees it."""
    frame: dict[str, Any] = {"access_token": settings.access_token}
    if settings.test_event_code:
        frame["test_event_code"] = settings.test_event_code
    body = encode_json(frame)[:-1] + b',"data":' + json_list(events) + b"}"
    url = f"https://graph.facebook.com/{settings.api_version}/{settings.pixel_id}/events"
    return HttpRequest("POST", url, body, {"content-type": "application/json"})


destination = Destination(
    name="Meta Conversions API",
    aliases=("Facebook Pixel",),
    summary="Web events of a Meta pixel.",
    settings=MetaSettings,
    options=MetaOptions,
    sink=Http(event, request, limits=Limits(events=1000, request_bytes=2_000_000, oldest_seconds=_OLDEST_SECONDS)),
    documentation="https://developers.facebook.com/docs/marketing-api/conversions-api/using-the-api",
    delivery_guarantee="At least once; event_id is the hitId, and Meta drops repeats of it for 48 hours.",
)
