"""Meta Conversions API: sends web events of a pixel from the server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

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
    Rejected,
    Retry,
    Settings,
    Skipped,
    Verdict,
    encode_json,
    json_list,
    judge,
)
from pipeline.destination.message import id_of, object_of
from pipeline.destination.semantic_event import is_number, lines_of, rounded, semantic_event, unreadable_amount

_EVENTS: Mapping[str, str] = {
    "Viewed Page": "PageView",
    "Viewed Product Detail": "ViewContent",
    "Searched Products": "Search",
    "Added Product": "AddToCart",
    "Added Product to Wishlist": "AddToWishlist",
    "Viewed Checkout Step": "InitiateCheckout",
    "Started Order": "InitiateCheckout",
    "Added Payment Info": "AddPaymentInfo",
    "Completed Transaction": "Purchase",
    "Registered": "CompleteRegistration",
    "Subscribed": "Subscribe",
    "Submitted Lead": "Lead",
    "Lead": "Lead",
}
_OLDEST_SECONDS = 7 * 24 * 3600  # one older event fails its whole request ("Server Event Parameters", event_time)
_COOKIE = r"^fb\.\d\.\d+\..+$"  # "fbp and fbc Parameters"; Meta ignores values of another form
_SHA256 = re.compile(r"[0-9a-f]{64}")


class MetaSettings(Settings):
    """The pixel."""

    pixel_id: str = Field(pattern=r"^\d+$", description="The number of the pixel (dataset).")
    access_token: str = Field(
        min_length=1, description="The access token. Create it in the Events Manager under Settings, Conversions API."
    )
    api_version: str = Field(
        "v25.0", pattern=r"^v\d+\.\d$", description="The version of the Graph API; v25.0 ends in July 2028."
    )
    test_event_code: str | None = Field(
        None, description="A code that makes the Events Manager show the events under Test events."
    )


class MetaOptions(Options):
    """The sender's options for one hit."""

    fbp: str | None = Field(None, pattern=_COOKIE, description="The browser's _fbp cookie.")
    fbc: str | None = Field(None, pattern=_COOKIE, description="The browser's _fbc cookie.")
    actionSource: Literal["website", "email", "phone_call", "chat", "system_generated", "other"] = Field(
        "website", description="Where the event happened."
    )


def event(delivery: Delivery) -> Event | Skipped | Rejected:
    """Return the event. Meta drops repeats of event_id, which is the hitId, for 48 hours, also those of the browser's pixel.

    The event_id of a public hit is not hashed, because the browser's pixel sends the same one. Anyone who can run the pixel can send
    any event_id anyway.
    """
    if (skipped := delivery.unsupported()) is not None:
        return skipped
    hit, source, url = delivery.hit, delivery.options.actionSource, delivery.message.page.get("url")
    translated = semantic_event(delivery.message)
    if not translated.name:
        return Skipped("event_without_name")
    # Required for events of a website ("Parameters").
    if source == "website" and not isinstance(delivery.context.get("userAgent"), str):
        return Skipped("no_user_agent")
    if source == "website" and not isinstance(url, str):
        return Skipped("no_page_url")
    if translated.unreadable:
        return unreadable_amount(translated.unreadable)
    custom_data = _custom_data(translated.fields)
    body: dict[str, Any] = {
        "event_name": _EVENTS.get(translated.name, translated.name),
        "event_time": delivery.time_ms // 1000,
        "event_id": hit.hitId,
        "action_source": source,
        "user_data": _user_data(delivery),
        **({"event_source_url": url} if isinstance(url, str) else {}),
        **({"custom_data": custom_data} if custom_data else {}),
    }
    return Event(hit.hitId, encode_json(body))


def _user_data(delivery: Delivery) -> dict[str, Any]:
    """Return the user data, hashed where Meta requires it ("Customer Information Parameters")."""
    hit, context, options = delivery.hit, delivery.context, delivery.options
    user = {key: value for key, value in delivery.message.user.items() if isinstance(value, str)}
    if isinstance(number := delivery.message.user.get("phone"), int):
        user["phone"] = str(number)
    normalized = {
        "em": user.get("email", "").strip(),
        "ph": _phone(user.get("phone", "")),
        "fn": re.sub(r"[^\w\s]|_", "", user.get("firstName", "")).strip(),
        "ln": re.sub(r"[^\w\s]|_", "", user.get("lastName", "")).strip(),
    }
    user_data: dict[str, Any] = {
        "external_id": [_hashed(identity) for identity in (hit.userId, hit.anonymousId) if identity],
        "client_ip_address": context.get("ip"),
        "client_user_agent": context.get("userAgent"),
        "fbp": options.fbp,
        "fbc": options.fbc or _fbc_of_page(delivery),
        **{key: [_hashed(text)] for key, text in normalized.items() if text},
    }
    return {key: value for key, value in user_data.items() if value}


def _phone(text: str) -> str:
    """Return the digits of a phone number without leading zeros; a hash stays unchanged. The sender must include the country code."""
    return text if _SHA256.fullmatch(text.strip().lower()) else re.sub(r"\D", "", text).lstrip("0")


def _fbc_of_page(delivery: Delivery) -> str | None:
    """Return the value of the _fbc cookie from the fbclid of the page's URL; None without a click on an advertisement."""
    url = delivery.message.page.get("url")
    try:
        click_ids = parse_qs(urlsplit(url).query).get("fbclid") if isinstance(url, str) else None
    except ValueError:
        return None
    return f"fb.1.{delivery.time_ms}.{click_ids[0]}" if click_ids else None


def _hashed(text: str) -> str:
    """Return the SHA-256 of the normalized text; a hash stays unchanged."""
    normalized = text.strip().lower()
    return normalized if _SHA256.fullmatch(normalized) else hashlib.sha256(normalized.encode()).hexdigest()


def _custom_data(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the custom data ("Custom Data Parameters"). `fields` holds amounts as numbers."""
    order = object_of(fields.get("transaction")) or object_of(fields.get("cart"))
    contents = [content for content in map(_content, lines_of(fields)) if "id" in content]
    source = order or (fields if "value" in fields or not contents else _value_of_product(fields, contents[0]))
    amounts = [source.get(name) for name in ("total", "revenue", "value")]
    currency, query = source.get("currency"), fields.get("query")
    custom_data = {
        "value": next(filter(is_number, amounts), None),
        "currency": currency if isinstance(currency, str) else None,
        "order_id": id_of(order.get("orderId", order.get("id") if "transaction" in fields else None)),
        "contents": contents,
        "content_type": "product" if contents else None,
        "search_string": query if isinstance(query, str) else None,
    }
    return {key: value for key, value in custom_data.items() if value is not None and value not in ("", [])}


def _content(line: Any) -> dict[str, Any]:
    """Return a line as `id`, `quantity` and `item_price`, each only if the line has it."""
    line = object_of(line)
    product = line["product"] if isinstance(line.get("product"), dict) else {"id": line.get("product")}
    product = product if "product" in line else line
    prices = [product.get(name) for name in ("unitSalePrice", "unitPrice", "price")]
    numbers = {
        "quantity": line.get("quantity"),
        "item_price": next((price for price in prices if price is not None), None),
    }
    identity = id_of(product.get("id", product.get("skuCode")))
    return {
        **({"id": identity} if identity else {}),
        **{key: number for key, number in numbers.items() if is_number(number)},
    }


def _value_of_product(fields: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return value and currency of a single product."""
    currency = object_of(fields.get("product")).get("currency", fields.get("currency"))
    if currency is None or "item_price" not in content:
        return {"currency": currency}
    return {"value": rounded(content["item_price"] * content.get("quantity", 1)), "currency": currency}


def request(events: Sequence[Event], settings: MetaSettings, now_seconds: float) -> HttpRequest:
    """Return the request. The token is in the body, so that no log of a proxy shows it."""
    envelope: dict[str, Any] = {"access_token": settings.access_token}
    if settings.test_event_code:
        envelope["test_event_code"] = settings.test_event_code
    body = encode_json(envelope)[:-1] + b',"data":' + json_list(events) + b"}"
    url = f"https://graph.facebook.com/{settings.api_version}/{settings.pixel_id}/events"
    return HttpRequest("POST", url, body, {"content-type": "application/json"})


_TRANSIENT_CODES = frozenset({1, 2, 4, 17, 341, 613})
_OPERATOR_CODES = frozenset({3, 10, 102, 190, *range(200, 300)})
_BUSINESS_LIMIT_CODES = range(80_000, 80_100)


def verdict(response: HttpResponse, events: Sequence[Event]) -> Verdict:
    """Return the outcome by the error's code. The Graph API answers 400 also for invalid tokens and rate limits ("Handling Errors")."""
    content = response.json()
    error = content.get("error") if isinstance(content, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if response.status < 400 or not isinstance(error, dict) or not isinstance(code, int):
        return judge(response, events)
    if code in _OPERATOR_CODES:
        return Misconfigured(
            f"Meta answers error {code}: the access_token is invalid or has no permission for this pixel; create a new one"
        )
    if code in _TRANSIENT_CODES or code in _BUSINESS_LIMIT_CODES or error.get("is_transient") is True:
        return Retry(f"meta_{code}")
    return judge(response, events)


destination = Destination(
    name="Meta Conversions API",
    aliases=("Facebook Pixel",),
    summary="Sends web events of a Meta pixel.",
    settings=MetaSettings,
    options=MetaOptions,
    sink=Http(event, request, verdict, Limits(events=1000, request_bytes=2_000_000, oldest_seconds=_OLDEST_SECONDS)),
    documentation="https://developers.facebook.com/documentation/ads-commerce/conversions-api/using-the-api",
    delivery_guarantee="At least once; event_id is the hitId, and Meta drops its repeats for 48 hours.",
)
