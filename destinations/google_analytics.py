"""Google Analytics 4: events by the Measurement Protocol. It answers 2xx even to what it drops, so all rules are checked here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from pydantic import Field

from pipeline.destination import (
    Delivery,
    Destination,
    Event,
    Http,
    HttpRequest,
    Limits,
    Options,
    Rejected,
    Settings,
    Skipped,
    encode_json,
    json_list,
)

_URL = "https://www.google-analytics.com/mp/collect"
_PARAMETERS, _NAME_LENGTH, _VALUE_LENGTH = 25, 40, 100
_OLDEST_SECONDS = 72 * 3600  # else GA4 takes the event, but dates it 72 hours back ("Sending events", "Past events")
_EVENTS: Mapping[str, str] = {
    "Viewed Page": "page_view",
    "Viewed Product Detail": "view_item",
    "Viewed Product": "view_item_list",
    "Viewed Product Listing": "view_item_list",
    "Viewed Product Category": "view_item_list",
    "Clicked Product": "select_item",
    "Searched Products": "search",
    "Searched": "search",
    "Added Product": "add_to_cart",
    "Removed Product": "remove_from_cart",
    "Added Product to Wishlist": "add_to_wishlist",
    "Viewed Cart": "view_cart",
    "Viewed Checkout Step": "begin_checkout",
    "Completed Checkout Step": "checkout_progress",
    "Completed Transaction": "purchase",
    "Updated Transaction": "update_transaction",
    "Refunded Transaction": "refund",
    "Viewed Campaign": "view_promotion",
    "Clicked Campaign": "select_promotion",
    "Subscribed": "subscribe",
    "Registered": "sign_up",
    "Logged In": "login",
    "Logged Out": "logout",
    "Submitted Lead": "generate_lead",
    "Shared": "share",
    "Viewed Experiment": "experiment_impression",
    "Achieved Experiment Goal": "experiment_goal",
    "Opened Chat": "open_chat",
    "Allowed Push Notifications": "allow_push_notifications",
}
"""SegmentStream's semantic events; others keep their name, written as GA4 wants it."""
_RESERVED = frozenset(
    [
        "ad_activeview",
        "ad_click",
        "ad_exposure",
        "ad_query",
        "ad_reward",
        "adunit_exposure",
        "app_background",
        "app_clear_data",
        "app_exception",
        "app_remove",
        "app_store_refund",
        "app_store_subscription_cancel",
        "app_store_subscription_convert",
        "app_store_subscription_renew",
        "app_uninstall",
        "app_update",
        "app_upgrade",
        "dynamic_link_app_open",
        "dynamic_link_app_update",
        "dynamic_link_first_open",
        "error",
        "firebase_campaign",
        "firebase_in_app_message_action",
        "firebase_in_app_message_dismiss",
        "firebase_in_app_message_impression",
        "first_open",
        "first_visit",
        "in_app_purchase",
        "notification_dismiss",
        "notification_foreground",
        "notification_open",
        "notification_receive",
        "notification_send",
        "os_update",
        "session_start",
        "session_start_with_rollout",
        "user_engagement",
    ]
)
_RESERVED_PREFIXES = ("_", "firebase_", "ga_", "google_", "gtag.")
_TRANSACTION = {"id": "transaction_id", "orderId": "transaction_id", "total": "value", "revenue": "value"}
_ITEM = {"id": "item_id", "skuCode": "item_id", "name": "item_name", "manufacturer": "item_brand", "unitPrice": "price"}


class GoogleAnalyticsSettings(Settings):
    """Which data stream."""

    measurement_id: str = Field(pattern=r"^G-[A-Z0-9]+$", description="The stream's measurement id, such as G-XXXXXXX.")
    api_secret: str = Field(
        min_length=1, description="Made under Admin, Data streams, Measurement Protocol API secrets."
    )


class GoogleAnalyticsOptions(Options):
    """What a sender may say about one hit."""

    clientId: str | None = Field(None, min_length=1, description="The client id of the browser's _ga cookie.")
    sessionId: str | int | None = Field(None, description="The session id of its _ga_<stream> cookie.")


def event(delivery: Delivery) -> Event | Skipped | Rejected:
    """The event with its parameters; client id from the options, else userId, else anonymousId."""
    hit, options = delivery.hit, delivery.options
    name = _EVENTS.get(delivery.name) or re.sub(r"\W+", "_", delivery.name, flags=re.ASCII).strip("_").lower()
    if not name:
        return Skipped("event_without_name")
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{0,{_NAME_LENGTH - 1}}}", name):
        return Rejected(
            "event_name", f"{name!r} can't be an event of GA4: letters, digits and _, at most {_NAME_LENGTH}"
        )
    if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
        return Rejected("reserved_event_name", f"GA4 keeps {name!r} for itself, and would drop it")
    parameters = _parameters(delivery)
    if options.sessionId is not None:
        parameters["session_id"] = str(options.sessionId)
    # Without it GA4 counts no engaged user.
    parameters.setdefault("engagement_time_msec", 1)
    if len(parameters) > _PARAMETERS:
        parameters = dict(sorted(parameters.items(), key=lambda item: item[0] not in _FIRST)[:_PARAMETERS])
    body = encode_json({"name": name, "timestamp_micros": delivery.sent_ms * 1000, "params": parameters})
    client_id = options.clientId or hit.userId or hit.anonymousId
    return Event(hit.hitId, body, (client_id, hit.userId))


_FIRST = frozenset(
    [
        "transaction_id",
        "value",
        "currency",
        "items",
        "session_id",
        "engagement_time_msec",
        "page_location",
        "page_title",
        "page_referrer",
    ]
)
"""What stays when there are more parameters than GA4 takes."""


def _parameters(delivery: Delivery) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, place in (("page_location", "url"), ("page_title", "title"), ("page_referrer", "referrer")):
        value = delivery.at("page", place)
        if isinstance(value, str):
            found[name] = value
    transaction = delivery.event.get("transaction")
    if isinstance(transaction, dict):
        found |= _scalars(transaction, _TRANSACTION)
        items = transaction.get("lineItems") or transaction.get("items")
        if isinstance(items, list):
            found["items"] = [_item(item) for item in items[:200] if isinstance(item, dict)]
    product = delivery.event.get("product")
    if isinstance(product, dict):
        found["items"] = [_item({"product": product, "quantity": delivery.event.get("quantity", 1)})]
    return {**_scalars(delivery.properties, {}), **found}


def _item(line: dict[str, Any]) -> dict[str, Any]:
    product = line.get("product") if isinstance(line.get("product"), dict) else line
    assert isinstance(product, dict)
    quantity = line.get("quantity")
    return {**_scalars(product, _ITEM), **({"quantity": quantity} if isinstance(quantity, int | float) else {})}


def _scalars(members: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Texts and numbers under names that GA4 takes, at the length that it takes."""
    result: dict[str, Any] = {}
    for key, value in members.items():
        name = re.sub(r"\W+", "_", names.get(key, key), flags=re.ASCII)[:_NAME_LENGTH]
        if not re.match(r"[A-Za-z]", name) or name.startswith(_RESERVED_PREFIXES):
            continue
        if isinstance(value, bool):
            result[name] = str(value).lower()
        elif isinstance(value, int | float):
            result[name] = value
        elif isinstance(value, str):
            result[name] = value[:_VALUE_LENGTH]
    return result


def request(events: Sequence[Event], settings: GoogleAnalyticsSettings, now_seconds: float) -> HttpRequest:
    """One request per person."""
    client_id, user_id = msgspec.convert(events[0].group, tuple[str, str | None])
    person = {"client_id": client_id, **({"user_id": user_id} if user_id else {})}
    body = encode_json(person)[:-1] + b',"events":' + json_list(events) + b"}"
    url = f"{_URL}?measurement_id={settings.measurement_id}&api_secret={settings.api_secret}"
    return HttpRequest("POST", url, body, {"content-type": "application/json"})


destination = Destination(
    name="Google Analytics",
    summary="Events of a Google Analytics 4 web stream.",
    settings=GoogleAnalyticsSettings,
    options=GoogleAnalyticsOptions,
    sink=Http(event, request, limits=Limits(events=25, request_bytes=130_000, oldest_seconds=_OLDEST_SECONDS)),
    documentation="https://developers.google.com/analytics/devguides/collection/protocol/ga4/reference",
    delivery_guarantee="At least once; GA4 drops repeats of purchases by transaction_id only.",
)
