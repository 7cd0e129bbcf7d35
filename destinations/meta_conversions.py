"""Meta Conversions API: web events of a pixel, sent by the server."""

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
from pipeline.message import id_of, object_of
from pipeline.semantic_event import is_number, lines_of, rounded, semantic_event, unreadable_amount

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
_COOKIE = r"^fb\.\d\.\d+\..+$"  # "fbp and fbc Parameters"; what has another form Meta ignores
_SHA256 = re.compile(r"[0-9a-f]{64}")


class MetaSettings(Settings):
    """Which pixel."""

    pixel_id: str = Field(pattern=r"^\d+$", description="The pixel's (dataset's) number.")
    access_token: str = Field(min_length=1, description="Made in the Events Manager, Settings, Conversions API.")
    api_version: str = Field("v25.0", pattern=r"^v\d+\.\d$", description="Of the Graph API; v25.0 ends in July 2028.")
    test_event_code: str | None = Field(None, description="Shows the events under Test events.")


class MetaOptions(Options):
    """What a sender may say about one hit."""

    fbp: str | None = Field(None, pattern=_COOKIE, description="The browser's _fbp cookie.")
    fbc: str | None = Field(None, pattern=_COOKIE, description="The browser's _fbc cookie.")
    actionSource: Literal["website", "email", "phone_call", "chat", "system_generated", "other"] = Field(
        "website", description="Where it happened."
    )


def event(delivery: Delivery) -> Event | Skipped | Rejected:
    """event_id is the hitId, by which Meta drops repeats, also of the browser's pixel, for 48 hours.

    That of a public door is no hash: the pixel sends the same one, and whoever can run the pixel can send any.
    """
    if (skipped := delivery.unsupported()) is not None:
        return skipped
    hit, source, url = delivery.hit, delivery.options.actionSource, delivery.message.page.get("url")
    said = semantic_event(delivery.message)
    if not said.name:
        return Skipped("event_without_name")
    # What an event of a website needs ("Parameters").
    if source == "website" and not isinstance(delivery.context.get("userAgent"), str):
        return Skipped("no_user_agent")
    if source == "website" and not isinstance(url, str):
        return Skipped("no_page_url")
    if said.unreadable:
        return unreadable_amount(said.unreadable)
    custom = _custom(said.fields)
    body: dict[str, Any] = {
        "event_name": _EVENTS.get(said.name, said.name),
        "event_time": delivery.time_ms // 1000,
        "event_id": hit.hitId,
        "action_source": source,
        "user_data": _person(delivery),
        **({"event_source_url": url} if isinstance(url, str) else {}),
        **({"custom_data": custom} if custom else {}),
    }
    return Event(hit.hitId, encode_json(body))


def _person(delivery: Delivery) -> dict[str, Any]:
    """Hashed where Meta wants it so ("Customer Information Parameters")."""
    hit, context, options = delivery.hit, delivery.context, delivery.options
    told = {key: value for key, value in delivery.message.user.items() if isinstance(value, str)}
    if isinstance(number := delivery.message.user.get("phone"), int):
        told["phone"] = str(number)
    normal = {
        "em": told.get("email", "").strip(),
        "ph": _phone(told.get("phone", "")),
        "fn": re.sub(r"[^\w\s]|_", "", told.get("firstName", "")).strip(),
        "ln": re.sub(r"[^\w\s]|_", "", told.get("lastName", "")).strip(),
    }
    found: dict[str, Any] = {
        "external_id": [_hashed(identity) for identity in (hit.userId, hit.anonymousId) if identity],
        "client_ip_address": context.get("ip"),
        "client_user_agent": context.get("userAgent"),
        "fbp": options.fbp,
        "fbc": options.fbc or _click(delivery),
        **{key: [_hashed(text)] for key, text in normal.items() if text},
    }
    return {key: value for key, value in found.items() if value}


def _phone(text: str) -> str:
    """Digits with the country's code, which must be there already, without leading zeros; a hash stays."""
    return text if _SHA256.fullmatch(text.strip().lower()) else re.sub(r"\D", "", text).lstrip("0")


def _click(delivery: Delivery) -> str | None:
    """What the _fbc cookie would hold, where the page was reached by a click on an advertisement."""
    url = delivery.message.page.get("url")
    try:
        found = parse_qs(urlsplit(url).query).get("fbclid") if isinstance(url, str) else None
    except ValueError:
        return None
    return f"fb.1.{delivery.time_ms}.{found[0]}" if found else None


def _hashed(text: str) -> str:
    """SHA-256 of the normalised text; what is a hash already stays."""
    normal = text.strip().lower()
    return normal if _SHA256.fullmatch(normal) else hashlib.sha256(normal.encode()).hexdigest()


def _custom(said: Mapping[str, Any]) -> dict[str, Any]:
    """Custom data; amounts are numbers by now ("Custom Data Parameters")."""
    order = object_of(said.get("transaction")) or object_of(said.get("cart"))
    contents = [content for content in map(_content, lines_of(said)) if "id" in content]
    source = order or (said if "value" in said or not contents else _value_of(said, contents[0]))
    amounts = [source.get(name) for name in ("total", "revenue", "value")]
    currency, query = source.get("currency"), said.get("query")
    found = {
        "value": next(filter(is_number, amounts), None),
        "currency": currency if isinstance(currency, str) else None,
        "order_id": id_of(order.get("orderId", order.get("id") if "transaction" in said else None)),
        "contents": contents,
        "content_type": "product" if contents else None,
        "search_string": query if isinstance(query, str) else None,
    }
    return {key: value for key, value in found.items() if value is not None and value not in ("", [])}


def _content(line: Any) -> dict[str, Any]:
    """A line with `id`, where it has one, `quantity` and `item_price`."""
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


def _value_of(said: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Value and currency of a product alone."""
    currency = object_of(said.get("product")).get("currency", said.get("currency"))
    if currency is None or "item_price" not in content:
        return {"currency": currency}
    return {"value": rounded(content["item_price"] * content.get("quantity", 1)), "currency": currency}


def request(events: Sequence[Event], settings: MetaSettings, now_seconds: float) -> HttpRequest:
    """The token goes into the body, so that no log of a proxy sees it."""
    frame: dict[str, Any] = {"access_token": settings.access_token}
    if settings.test_event_code:
        frame["test_event_code"] = settings.test_event_code
    body = encode_json(frame)[:-1] + b',"data":' + json_list(events) + b"}"
    url = f"https://graph.facebook.com/{settings.api_version}/{settings.pixel_id}/events"
    return HttpRequest("POST", url, body, {"content-type": "application/json"})


_AGAIN = frozenset({1, 2, 4, 17, 341, 613})
_OPERATOR = frozenset({3, 10, 102, 190, *range(200, 300)})
_BUSINESS_LIMITS = range(80_000, 80_100)


def verdict(response: HttpResponse, events: Sequence[Event]) -> Verdict:
    """The Graph API answers 400 to a dead token and to too many calls, too; its code tells ("Handling Errors")."""
    answer = response.json()
    error = answer.get("error") if isinstance(answer, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if response.status < 400 or not isinstance(error, dict) or not isinstance(code, int):
        return judge(response, events)
    if code in _OPERATOR:
        return Misconfigured(f"Meta answers error {code}: the access_token is dead, or may not send to this pixel")
    if code in _AGAIN or code in _BUSINESS_LIMITS or error.get("is_transient") is True:
        return Retry(f"meta_{code}")
    return judge(response, events)


destination = Destination(
    name="Meta Conversions API",
    aliases=("Facebook Pixel",),
    summary="Web events of a Meta pixel.",
    settings=MetaSettings,
    options=MetaOptions,
    sink=Http(event, request, verdict, Limits(events=1000, request_bytes=2_000_000, oldest_seconds=_OLDEST_SECONDS)),
    documentation="https://developers.facebook.com/documentation/ads-commerce/conversions-api/using-the-api",
    delivery_guarantee="At least once; event_id is the hitId, and Meta drops repeats of it for 48 hours.",
)
