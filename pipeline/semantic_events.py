"""What SegmentStream's semantic events say, in GA4's words: names of events, their parameters and items.

For Google Analytics and OWOX. The objects are those of docs.segmentstream.com: transaction, cart, product, listItem(s), campaign(s),
experiment; the limits those of GA4's "Sending events, Limitations".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.destination import Delivery

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
_OBJECTS = ("product", "campaign")
"""May be a mere id; a parameter `campaign` would be the source of the visit."""
_SAID = {"step": "checkout_step", "option": "checkout_option", "query": "search_term"}
_CART = {"id": "cart_id", "total": "value", "shippingCost": "shipping"}
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
_ALWAYS = ("transaction_id", "value", "currency", "items", "session_id", "engagement_time_msec")
_FIRST = frozenset([*_ALWAYS, *(parameter for parameter, _ in _PAGE.values())])
"""What stays when there are more parameters than GA4 takes."""


def ga4_name(delivery: Delivery) -> str:
    """The event's name as GA4 knows it, else as GA4 writes it; "" when nothing of it is left."""
    if delivery.name == "Viewed Checkout Step" and delivery.event.get("step", 1) in (1, "1"):
        return "begin_checkout"
    return _EVENTS.get(delivery.name) or re.sub(r"\W+", "_", delivery.name, flags=re.ASCII).strip("_").lower()


def ga4_parameters(delivery: Delivery, more: Mapping[str, Any]) -> dict[str, Any]:
    """`more` and what the event says, at most 25."""
    said = delivery.event
    order = _object(said.get("transaction")) or _object(said.get("cart"))
    names = _TRANSACTION if _object(said.get("transaction")) else _CART
    found = {
        **_scalars({key: value for key, value in delivery.properties.items() if key not in _OBJECTS}, _SAID),
        **_page(delivery),
        **_scalars(_object(said.get("experiment")), _EXPERIMENT),
        **_scalars(order, names),
    }
    vouchers = [voucher for voucher in _list(order.get("vouchers")) if isinstance(voucher, str)]
    if vouchers:
        found["coupon"] = vouchers[0][:VALUE_LENGTH]
    items = [item for item in _items(said, order) if "item_id" in item or "item_name" in item]  # GA4 wants one of them
    if items:
        found["items"] = items
    if items and isinstance(said.get("product"), dict):
        found = {**_price(items[0]), **found}
    found |= more
    return dict(sorted(found.items(), key=lambda item: item[0] not in _FIRST)[:PARAMETERS])


def _page(delivery: Delivery) -> dict[str, str]:
    values = {name: delivery.at("page", place) for place, (name, _) in _PAGE.items()}
    return {name: values[name][:length] for name, length in _PAGE.values() if isinstance(values[name], str)}


def _items(said: Mapping[str, Any], order: Mapping[str, Any]) -> list[dict[str, Any]]:
    campaigns = _list(said.get("campaigns", said.get("campaign")))
    if campaigns:
        return [_campaign(campaign) for campaign in campaigns[:_ITEMS]]
    lines = _list(order.get("lineItems") or order.get("items") or said.get("listItems") or said.get("listItem"))
    if "product" in said and not lines:
        lines = [{"product": said["product"], "quantity": said.get("quantity", 1)}]
    return [_item(_object(line)) for line in lines[:_ITEMS]]


def _item(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of an order or of a list. A product that is only an id is one, too; a line without a product is the product itself."""
    product = _object(line.get("product")) or {"id": line["product"]} if "product" in line else line
    item = {**_scalars(product, _PRODUCT), **_scalars(line, _LINE)} if "product" in line else _scalars(line, _PRODUCT)
    unit, price = item.pop("unitPrice", None), item.get("price")
    if unit is not None and price is None:
        item["price"] = unit
    elif isinstance(unit, int | float) and isinstance(price, int | float) and unit > price:
        item["discount"] = _rounded(unit - price)
    for name, category in zip(_CATEGORIES, _list(product.get("category")), strict=False):
        item |= _scalars({name: category}, {})
    own = {name: value for name, value in item.items() if name not in ("id", "category", *_OBJECTS)}
    custom = [name for name in own if name not in _PRESCRIBED]
    identity = _identity(product.get("id", product.get("skuCode")))
    return identity | {name: value for name, value in own.items() if name not in custom[_CUSTOM_ITEM_PARAMETERS:]}


def _campaign(campaign: Any) -> dict[str, Any]:
    """A promotion as an item, since there may be several of them."""
    told = _scalars(_object(campaign) or {"id": campaign}, _CAMPAIGN)
    told = {name: value for name, value in told.items() if name in _CAMPAIGN.values()}
    return _identity(told.get("promotion_id")) | told


def _identity(value: Any) -> dict[str, str]:
    return {"item_id": str(value)[:VALUE_LENGTH]} if isinstance(value, str | int) and value != "" else {}


def _price(item: Mapping[str, Any]) -> dict[str, Any]:
    """Value and currency of one product: GA4 takes a value with its currency only."""
    price, quantity = item.get("price"), item.get("quantity", 1)
    if not isinstance(price, int | float) or not isinstance(quantity, int | float) or "currency" not in item:
        return {}
    return {"value": _rounded(price * quantity), "currency": item["currency"]}


def _rounded(number: float) -> float:
    """Raises OverflowError for what no float holds, which JSON could not say either."""
    if math.isinf(number):
        raise OverflowError("a price times its quantity is no number")
    return round(number, 6)


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
            result[name] = value
        elif isinstance(value, str):
            result[name] = value[:VALUE_LENGTH]
    return result


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
