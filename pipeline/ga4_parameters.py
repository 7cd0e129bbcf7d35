"""What semantic events say, in GA4's words: names of events, their parameters and items.

For Google Analytics and OWOX; semantic_event.py has put Segment's events into SegmentStream's words before. The objects are
those of docs.segmentstream.com: transaction, cart, product, listItem(s), campaign(s), experiment; the limits those of GA4's
"Sending events, Limitations".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.message import Message, object_of
from pipeline.semantic_event import SemanticEvent, lines_of, rounded

PARAMETERS, NAME_LENGTH, VALUE_LENGTH = 25, 40, 100
_ITEMS, _CUSTOM_ITEM_PARAMETERS = 200, 10
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
    # Not in the documentation, but in SegmentStream's own script: two older names, and one more.
    "Viewed Product Category": "view_item_list",
    "Searched": "search",
    "Lead": "generate_lead",
}
"""The 29 of SegmentStream's documentation (docs/semantic-events.md says why which)."""
_RESERVED_PREFIXES = ("_", "firebase_", "ga_", "google_", "gtag.")
_PAGE = {"url": ("page_location", 1000), "title": ("page_title", 300), "referrer": ("page_referrer", 420)}
"""By the field of a page the parameter and its length, longer than that of others ("[GA4] Event collection limits")."""
_OBJECTS = ("product", "campaign", "items")
"""May be a mere id or number; a parameter `campaign` would be the source of the visit, and `items` is a list."""
_SAID = {"step": "checkout_step", "option": "checkout_option", "query": "search_term"}
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
"""GA4's own parameters of an item; of others it takes ten."""
_TEXTS = frozenset(
    {
        *("transaction_id", "cart_id", "coupon", "affiliation", "item_list_id", "item_list_name", "location_id"),
        *("item_id", "item_name", "item_brand", "item_variant", "promotion_id", "promotion_name", *_CATEGORIES),
    }
)
"""Parameters that are texts, while senders write numbers for some ("Events reference")."""
_ALWAYS = ("transaction_id", "value", "currency", "items", "session_id", "engagement_time_msec")
_FIRST = frozenset([*_ALWAYS, *(parameter for parameter, _ in _PAGE.values())])
"""What stays when there are more parameters than GA4 takes."""


def ga4_name(event: SemanticEvent, message: Message) -> str:
    """The event's name as GA4 knows it, else as GA4 writes it; "" when nothing of it is left."""
    # Segment's senders begin with an event of its own, Checkout Started.
    is_first = event.name == "Viewed Checkout Step" and not message.is_segment
    if is_first and event.fields.get("step", 1) in (1, "1"):
        return "begin_checkout"
    return _EVENTS.get(event.name) or re.sub(r"\W+", "_", event.name, flags=re.ASCII).strip("_").lower()


def ga4_parameters(event: SemanticEvent, message: Message, more: Mapping[str, Any]) -> dict[str, Any]:
    """`more` and what the event says, at most 25."""
    said = event.fields
    order = object_of(said.get("transaction")) or object_of(said.get("cart"))
    names = _TRANSACTION if object_of(said.get("transaction")) else _CART
    found = {
        **_scalars({key: value for key, value in said.items() if key not in _OBJECTS}, _SAID),
        **_page(message.page),
        **_scalars(object_of(said.get("experiment")), _EXPERIMENT),
        **_scalars(order, names),
    }
    vouchers = [voucher for voucher in _list(order.get("vouchers")) if isinstance(voucher, str)]
    if vouchers:
        found["coupon"] = vouchers[0][:VALUE_LENGTH]
    items = [item for item in _items(said) if "item_id" in item or "item_name" in item]  # GA4 wants one of them
    if items:
        found["items"] = items
    if items and isinstance(said.get("product"), dict):
        found = {**_price(items[0]), **found}
    found |= more
    return dict(sorted(found.items(), key=lambda item: item[0] not in _FIRST)[:PARAMETERS])


def _page(page: Mapping[str, Any]) -> dict[str, str]:
    values = {name: page.get(place) for place, (name, _) in _PAGE.items()}
    return {name: text[:length] for name, length in _PAGE.values() if isinstance(text := values[name], str)}


def _items(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    campaigns = _list(said.get("campaigns", said.get("campaign")))
    if campaigns:
        return [_campaign(campaign) for campaign in campaigns[:_ITEMS]]
    return [_item(object_of(line)) for line in lines_of(said)[:_ITEMS]]


def _item(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of an order or of a list. A product that is only an id is one, too; a line without a product is the product itself."""
    product = object_of(line.get("product")) or {"id": line["product"]} if "product" in line else line
    item = {**_scalars(product, _PRODUCT), **_scalars(line, _LINE)} if "product" in line else _scalars(line, _PRODUCT)
    unit, price = item.pop("unitPrice", None), item.get("price")
    if unit is not None and price is None:
        item["price"] = unit
    elif isinstance(unit, int | float) and isinstance(price, int | float) and unit > price:
        item["discount"] = rounded(unit - price)
    for name, category in zip(_CATEGORIES, _list(product.get("category")), strict=False):
        item |= _scalars({name: category}, {})
    own = {name: value for name, value in item.items() if name not in ("id", "category", *_OBJECTS)}
    custom = [name for name in own if name not in _PRESCRIBED]
    identity = _identity(product.get("id", product.get("skuCode")))
    return identity | {name: value for name, value in own.items() if name not in custom[_CUSTOM_ITEM_PARAMETERS:]}


def _campaign(campaign: Any) -> dict[str, Any]:
    """A promotion as an item, since there may be several of them."""
    told = _scalars(object_of(campaign) or {"id": campaign}, _CAMPAIGN)
    told = {name: value for name, value in told.items() if name in _CAMPAIGN.values()}
    return _identity(told.get("promotion_id")) | told


def _identity(value: Any) -> dict[str, str]:
    return {"item_id": str(value)[:VALUE_LENGTH]} if isinstance(value, str | int) and value != "" else {}


def _price(item: Mapping[str, Any]) -> dict[str, Any]:
    """Value and currency of one product: GA4 takes a value with its currency only."""
    price, quantity = item.get("price"), item.get("quantity", 1)
    if not isinstance(price, int | float) or not isinstance(quantity, int | float) or "currency" not in item:
        return {}
    return {"value": rounded(price * quantity), "currency": item["currency"]}


def _scalars(members: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Texts and numbers under names that GA4 takes, at the length that it takes."""
    result: dict[str, Any] = {}
    for key, value in members.items():
        name = re.sub(r"\W+", "_", names.get(key, key), flags=re.ASCII)[:NAME_LENGTH]
        if not re.match(r"[A-Za-z]", name) or name.startswith(_RESERVED_PREFIXES):
            continue
        if isinstance(value, bool):
            result[name] = str(value).lower()
        elif isinstance(value, int | float):
            result[name] = str(value)[:VALUE_LENGTH] if name in _TEXTS else value
        elif isinstance(value, str):
            result[name] = value[:VALUE_LENGTH]
    return result


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
