"""One vocabulary of e-commerce for Google Analytics, OWOX and Meta: SegmentStream's, into which Segment's events are put.

Amounts come out as numbers and currencies in capitals, since the vendors drop what has another type. Sources:
docs.segmentstream.com, "Events"; Segment's Spec, "V2 Ecommerce Events".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.amounts import read_amount
from pipeline.destination import Rejected
from pipeline.message import Message, object_of

_ORDERS = {
    "Order Completed": "Completed Transaction",
    "Order Updated": "Updated Transaction",
    "Order Refunded": "Refunded Transaction",
    "Order Cancelled": "Order Cancelled",
}
_CARTS = {
    "Cart Viewed": "Viewed Cart",
    "Checkout Started": "Started Order",
    "Checkout Step Viewed": "Viewed Checkout Step",
    "Checkout Step Completed": "Completed Checkout Step",
    "Payment Info Entered": "Added Payment Info",
}
_PRODUCTS = {
    "Product Clicked": "Clicked Product",
    "Product Viewed": "Viewed Product Detail",
    "Product Added": "Added Product",
    "Product Removed": "Removed Product",
    "Product Added to Wishlist": "Added Product to Wishlist",
    "Product Removed from Wishlist": "Removed Product from Wishlist",
    "Wishlist Product Added to Cart": "Added Product",
}
_LISTS = {"Product List Viewed": "Viewed Product", "Product List Filtered": "Product List Filtered"}
_CAMPAIGNS = {"Promotion Viewed": "Viewed Campaign", "Promotion Clicked": "Clicked Campaign"}
_OTHERS = {"Products Searched": "Searched Products", "Signed Up": "Registered", "Signed In": "Logged In"}
SEGMENT_EVENTS = {**_ORDERS, **_CARTS, **_PRODUCTS, **_LISTS, **_CAMPAIGNS, **_OTHERS}
"""SegmentStream's event of each of Segment's."""
_ORDER_FIELDS = {"order_id": "orderId"}
_CART_FIELDS = {"cart_id": "id"}
_PRODUCT_FIELDS = {
    "product_id": "id",
    "sku": "skuCode",
    "name": "name",
    "brand": "manufacturer",
    "category": "category",
    "variant": "item_variant",
    "price": "unitSalePrice",
    "coupon": "voucher",
    "position": "index",
    "currency": "currency",
    "url": "url",
    "image_url": "image_url",
}
_CAMPAIGN_FIELDS = {"promotion_id": "id", "name": "name", "creative": "design", "position": "position"}
_VALUES = ("total", "revenue", "value")
"""The first that an order has is its value, as Segment's own destination for GA4 takes it."""

_ORDER_AMOUNTS = ("total", "revenue", "value", "subtotal", "tax", "shipping", "shippingCost", "discount")
_LINE_AMOUNTS = ("unitPrice", "unitSalePrice", "price", "discount", "quantity")
_EVENT_AMOUNTS = ("value", "total", "revenue", "tax", "shipping", "quantity")
_LINES = ("lineItems", "items", "listItems", "listItem")
_MONEY = frozenset(
    {*_ORDERS.values(), *_CARTS.values(), *_PRODUCTS.values(), *_LISTS.values(), "Refunded Transaction", "Updated Cart"}
)
"""Events whose amounts are money; in others a `value` may be anything."""


class SemanticEvent(msgspec.Struct, frozen=True, gc=False):
    """`name` and `fields` in SegmentStream's words. `unreadable` is the path of the first amount that is no number."""

    name: str
    fields: dict[str, Any]
    unreadable: str = ""


def semantic_event(message: Message) -> SemanticEvent:
    """Translate and check what `message` says of orders, carts, products, lists and campaigns."""
    name, fields = _of_segment(message) if message.is_segment else (message.name, message.properties)
    unreadable: list[str] = []
    is_money = name in _MONEY or "product" in fields
    clean = _clean(fields, _EVENT_AMOUNTS, "", unreadable if is_money else None)
    for key in ("transaction", "cart"):
        if isinstance(clean.get(key), dict):
            clean[key] = _clean_order(clean[key], key, unreadable)
    if isinstance(clean.get("product"), dict):
        clean["product"] = _clean(clean["product"], _LINE_AMOUNTS, "product", unreadable)
    _clean_lines(clean, "", unreadable)
    return SemanticEvent(name, clean, unreadable[0] if unreadable else "")


def unreadable_amount(path: str) -> Rejected:
    """The outcome of a hit whose amount at `path` is no number, or could be two."""
    return Rejected("unreadable_amount", f"{path} is no amount with one reading; send a JSON number, such as 1299.5")


def lines_of(fields: Mapping[str, Any]) -> Sequence[Any]:
    """The lines of an order, a cart or a list; a product alone is a line, too."""
    order = object_of(fields.get("transaction")) or object_of(fields.get("cart"))
    found = order.get("lineItems") or order.get("items") or fields.get("listItems") or fields.get("listItem")
    lines: Sequence[Any] = found if isinstance(found, list) else [] if found is None else [found]
    if "product" in fields and not lines:
        return [{"product": fields["product"], "quantity": fields.get("quantity", 1)}]
    return lines


def is_number(value: Any) -> bool:
    """Is `value` a number of JSON?"""
    return isinstance(value, int | float) and not isinstance(value, bool)


def rounded(number: float) -> float:
    """Without what binary fractions add. Raises OverflowError for what no float holds, which JSON could not say either."""
    if math.isinf(number):
        raise OverflowError("a price times its quantity is no number")
    return round(number, 6)


def _clean_order(order: Mapping[str, Any], path: str, unreadable: list[str]) -> dict[str, Any]:
    clean = _clean(order, _ORDER_AMOUNTS, path, unreadable)
    _clean_lines(clean, f"{path}.", unreadable)
    return clean


def _clean_lines(holder: dict[str, Any], path: str, unreadable: list[str]) -> None:
    for key in _LINES:
        lines = holder.get(key)
        if isinstance(lines, list):
            holder[key] = [_clean_line(line, f"{path}{key}.{number}", unreadable) for number, line in enumerate(lines)]
        elif isinstance(lines, dict):
            holder[key] = _clean_line(lines, f"{path}{key}", unreadable)


def _clean_line(line: Any, path: str, unreadable: list[str]) -> Any:
    if not isinstance(line, dict):
        return line
    clean = _clean(line, _LINE_AMOUNTS, path, unreadable)
    if isinstance(clean.get("product"), dict):
        clean["product"] = _clean(clean["product"], _LINE_AMOUNTS, f"{path}.product", unreadable)
    return clean


def _clean(
    members: Mapping[str, Any], amounts: Iterable[str], path: str, unreadable: list[str] | None
) -> dict[str, Any]:
    """A copy with its amounts as numbers. An unreadable amount stays as it is where no list takes its path."""
    clean = dict(members)
    for key in amounts:
        value = clean.get(key)
        if value is None or is_number(value):
            continue
        number = read_amount(value) if isinstance(value, str) else None
        if number is not None:
            clean[key] = number
        elif unreadable is not None:
            del clean[key]
            if not isinstance(value, str) or value.strip():
                unreadable.append(f"{path}.{key}" if path else key)
    currency = clean.get("currency")
    if isinstance(currency, str) and len(currency.strip()) == 3:
        clean["currency"] = currency.strip().upper()
    return clean


def _of_segment(message: Message) -> tuple[str, dict[str, Any]]:
    name, properties = message.name, message.properties
    if message.type == "page":
        return name, {key: value for key, value in properties.items() if key not in message.page}
    if message.type != "track":
        return name, properties
    if name in _ORDERS:
        return _ORDERS[name], {"transaction": _order(properties, _ORDER_FIELDS)}
    if name in _CARTS:
        at_top: dict[str, Any] = {key: properties[key] for key in ("step", "option") if key in properties}
        return _CARTS[name], {**at_top, "cart": _order(_without(properties, at_top), _CART_FIELDS)}
    if name in _PRODUCTS:
        product = _renamed(properties, _PRODUCT_FIELDS)
        return _PRODUCTS[name], {**_without(properties, _PRODUCT_FIELDS.keys() - {"currency"}), "product": product}
    if name in _LISTS:
        place = {"listId": properties["list_id"]} if "list_id" in properties else {}
        lines = [{**line, **place} for line in _lines(properties)]
        return _LISTS[name], {**_without(properties, ("products", "list_id")), "listItems": lines}
    if name in _CAMPAIGNS:
        campaign = _renamed(properties, _CAMPAIGN_FIELDS)
        return _CAMPAIGNS[name], {**_without(properties, _CAMPAIGN_FIELDS), "campaign": campaign}
    return SEGMENT_EVENTS.get(name, name), properties


def _order(properties: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    value = next((properties[key] for key in _VALUES if properties.get(key) is not None), None)
    others = {names.get(key, key): other for key, other in properties.items() if key not in ("products", *_VALUES)}
    return {**others, **({} if value is None else {"total": value}), "lineItems": _lines(properties)}


def _lines(properties: Mapping[str, Any]) -> list[dict[str, Any]]:
    products = properties.get("products")
    return [_line(product) for product in products] if isinstance(products, list) else []


def _line(product: Any) -> dict[str, Any]:
    if not isinstance(product, dict):
        return {"product": product}
    quantity = {"quantity": product["quantity"]} if "quantity" in product else {}
    renamed = {_PRODUCT_FIELDS.get(key, key): value for key, value in product.items() if key != "quantity"}
    return {"product": renamed, **quantity}


def _renamed(members: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {new: members[old] for old, new in names.items() if old in members}


def _without(members: Mapping[str, Any], left_out: Iterable[str]) -> dict[str, Any]:
    left = set(left_out)
    return {key: value for key, value in members.items() if key not in left}
