"""Translates semantic events to GA4: event names, parameters and items, for Google Analytics and OWOX.

The input is in SegmentStream's vocabulary (semantic_event.py). Its objects are those of docs.segmentstream.com: transaction, cart,
product, listItem(s), campaign(s), experiment. The limits are those of GA4's "Sending events, Limitations".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.destination.message import Message, object_of
from pipeline.destination.semantic_event import SemanticEvent, lines_of, rounded

MAX_PARAMETERS, NAME_LENGTH, VALUE_LENGTH = 25, 40, 100
_MAX_ITEMS, _MAX_CUSTOM_ITEM_PARAMETERS = 200, 10
_EVENTS: Mapping[str, str] = {
    "Viewed Page": "page_view",
    "Viewed Product Listing": "view_item_list",
    "Viewed Product": "view_item_list",
    "Clicked Product": "select_item",
    "Viewed Product Detail": "view_item",
    "Searched Products": "search",
    "Added Product": "add_to_cart",
    "Removed Product": "remove_from_cart",
    "Added Product to Wishlist": "add_to_wishlist",
    "Removed Product from Wishlist": "remove_from_wishlist",
    "Viewed Cart": "view_cart",
    "Updated Cart": "update_cart",
    "Started Order": "begin_checkout",
    "Viewed Checkout Step": "checkout_progress",
    "Completed Checkout Step": "set_checkout_option",
    "Added Payment Info": "add_payment_info",
    "Received Voucher": "receive_voucher",
    "Completed Transaction": "purchase",
    "Updated Transaction": "update_transaction",
    "Refunded Transaction": "refund",
    "Viewed Campaign": "view_promotion",
    "Clicked Campaign": "select_promotion",
    "Viewed Experiment": "experiment_impression",
    "Achieved Experiment Goal": "experiment_goal",
    "Registered": "sign_up",
    "Logged In": "login",
    "Updated Profile Info": "update_profile_info",
    "Subscribed": "subscribe",
    "Unsubscribed": "unsubscribe",
    # Not documented, but in SegmentStream's own script: two older names, and Lead.
    "Viewed Product Category": "view_item_list",
    "Searched": "search",
    "Lead": "generate_lead",
}
"""GA4's event name of the 29 events in SegmentStream's documentation (reasons: docs/reference/semantic-events.md)."""
_RESERVED_PREFIXES = ("_", "firebase_", "ga_", "google_", "gtag.")
_PAGE = {"url": ("page_location", 1000), "title": ("page_title", 300), "referrer": ("page_referrer", 420)}
"""Parameter and maximum length by field of a page; longer than for other parameters ("[GA4] Event collection limits")."""
_OBJECTS = ("product", "campaign", "items")
"""Fields that never become parameters, even as a text or number: GA4's `campaign` is the source of the visit, `items` a list."""
_EVENT_FIELDS = {"step": "checkout_step", "option": "checkout_option", "query": "search_term"}
_CART = {
    "id": "cart_id",
    "total": "value",
    "shippingCost": "shipping",
    "payment_method": "payment_type",
    "shipping_method": "shipping_tier",
}
_TRANSACTION = {**_CART, "id": "transaction_id", "orderId": "transaction_id", "revenue": "value"}
_EXPERIMENT = {
    "id": "experiment_id",
    "name": "experiment_name",
    "variationId": "variation_id",
    "variationName": "variation_name",
}
_CAMPAIGN = {"id": "promotion_id", "name": "promotion_name", "design": "creative_name", "position": "creative_slot"}
_PRODUCT = {"name": "item_name", "manufacturer": "item_brand", "voucher": "coupon", "unitSalePrice": "price"}
_LINE = {"quantity": "quantity", "listId": "item_list_id", "listName": "item_list_name"}
_CATEGORIES = ("item_category", "item_category2", "item_category3", "item_category4", "item_category5")
_OTHERS = ("affiliation", "currency", "discount", "index", "item_id", "item_variant", "location_id")
_PRESCRIBED = frozenset([*_PRODUCT.values(), *_LINE.values(), *_CAMPAIGN.values(), *_CATEGORIES, *_OTHERS])
"""GA4's prescribed parameters of an item. An item can have ten others."""
_TEXT_PARAMETERS = frozenset({
    "transaction_id", "cart_id", "coupon", "affiliation", "item_list_id", "item_list_name", "location_id",
    "item_id", "item_name", "item_brand", "item_variant", "promotion_id", "promotion_name", *_CATEGORIES,
})  # fmt: skip
"""Parameters that must be strings; senders write numbers for some of them ("Events reference")."""
_KEY_PARAMETERS = ("transaction_id", "value", "currency", "items", "session_id", "engagement_time_msec")
_PREFERRED = frozenset([*_KEY_PARAMETERS, *(parameter for parameter, _ in _PAGE.values())])
"""Parameters that are kept first if an event has more parameters than GA4 accepts."""


def ga4_name(event: SemanticEvent, message: Message) -> str:
    """Return GA4's name of the event, else its name in GA4's notation; "" if that has no characters left."""
    # Segment has a separate event for the begin of a checkout, Checkout Started.
    is_checkout_step = event.name == "Viewed Checkout Step" and not message.is_segment
    if is_checkout_step and event.fields.get("step", 1) in (1, "1"):
        return "begin_checkout"
    return _EVENTS.get(event.name) or re.sub(r"\W+", "_", event.name, flags=re.ASCII).strip("_").lower()


def ga4_parameters(event: SemanticEvent, message: Message, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the event and `more`, at most 25."""
    fields = event.fields
    order = object_of(fields.get("transaction")) or object_of(fields.get("cart"))
    names = _TRANSACTION if object_of(fields.get("transaction")) else _CART
    parameters = {
        **_scalars({key: value for key, value in fields.items() if key not in _OBJECTS}, _EVENT_FIELDS),
        **_page(message.page),
        **_scalars(object_of(fields.get("experiment")), _EXPERIMENT),
        **_scalars(order, names),
    }
    vouchers = [voucher for voucher in _list(order.get("vouchers")) if isinstance(voucher, str)]
    if vouchers:
        parameters["coupon"] = vouchers[0][:VALUE_LENGTH]
    items = [item for item in _items(fields) if "item_id" in item or "item_name" in item]  # GA4 requires one of them
    if items:
        parameters["items"] = items
    if items and isinstance(fields.get("product"), dict):
        parameters = {**_price(items[0]), **parameters}
    parameters |= more
    return dict(sorted(parameters.items(), key=lambda item: item[0] not in _PREFERRED)[:MAX_PARAMETERS])


def _page(page: Mapping[str, Any]) -> dict[str, str]:
    values = {name: page.get(field) for field, (name, _) in _PAGE.items()}
    return {name: text[:length] for name, length in _PAGE.values() if isinstance(text := values[name], str)}


def _items(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    campaigns = _list(fields.get("campaigns", fields.get("campaign")))
    if campaigns:
        return [_campaign(campaign) for campaign in campaigns[:_MAX_ITEMS]]
    return [_item(object_of(line)) for line in lines_of(fields)[:_MAX_ITEMS]]


def _item(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the item of a line. Its `product` can be an id alone; a line without `product` is the product itself."""
    product = object_of(line.get("product")) or {"id": line["product"]} if "product" in line else line
    item = {**_scalars(product, _PRODUCT), **_scalars(line, _LINE)} if "product" in line else _scalars(line, _PRODUCT)
    unit, price = item.pop("unitPrice", None), item.get("price")
    if unit is not None and price is None:
        item["price"] = unit
    elif isinstance(unit, int | float) and isinstance(price, int | float) and unit > price:
        item["discount"] = rounded(unit - price)
    for name, category in zip(_CATEGORIES, _list(product.get("category")), strict=False):
        item |= _scalars({name: category}, {})
    parameters = {name: value for name, value in item.items() if name not in ("id", "category", *_OBJECTS)}
    custom = [name for name in parameters if name not in _PRESCRIBED]
    surplus = custom[_MAX_CUSTOM_ITEM_PARAMETERS:]
    item_id = _item_id(product.get("id", product.get("skuCode")))
    return item_id | {name: value for name, value in parameters.items() if name not in surplus}


def _campaign(campaign: Any) -> dict[str, Any]:
    """Return a promotion as an item, because an event can have several promotions."""
    values = _scalars(object_of(campaign) or {"id": campaign}, _CAMPAIGN)
    values = {name: value for name, value in values.items() if name in _CAMPAIGN.values()}
    return _item_id(values.get("promotion_id")) | values


def _item_id(value: Any) -> dict[str, str]:
    return {"item_id": str(value)[:VALUE_LENGTH]} if isinstance(value, str | int) and value != "" else {}


def _price(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return value and currency of one product; empty without a currency, since GA4 accepts a value only with one."""
    price, quantity = item.get("price"), item.get("quantity", 1)
    if not isinstance(price, int | float) or not isinstance(quantity, int | float) or "currency" not in item:
        return {}
    return {"value": rounded(price * quantity), "currency": item["currency"]}


def _scalars(members: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the strings, numbers and booleans of `members`, with names and lengths that GA4 accepts; `names` are renames."""
    result: dict[str, Any] = {}
    for key, value in members.items():
        name = re.sub(r"\W+", "_", names.get(key, key), flags=re.ASCII)[:NAME_LENGTH]
        if not re.match(r"[A-Za-z]", name) or name.startswith(_RESERVED_PREFIXES):
            continue
        if isinstance(value, bool):
            result[name] = str(value).lower()
        elif isinstance(value, int | float):
            result[name] = str(value)[:VALUE_LENGTH] if name in _TEXT_PARAMETERS else value
        elif isinstance(value, str):
            result[name] = value[:VALUE_LENGTH]
    return result


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
