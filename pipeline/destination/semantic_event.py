"""Translates Segment's e-commerce events to SegmentStream's vocabulary, for Google Analytics, OWOX and Meta.

Amounts become numbers and currencies upper case, because the vendors drop values of other types. Sources: docs.segmentstream.com,
"Events"; Segment's Spec, "V2 Ecommerce Events".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.destination import Rejected
from pipeline.destination.amounts import read_amount
from pipeline.destination.message import Message, object_of

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
"""SegmentStream's event name by Segment's."""
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
_VALUE_FIELDS = ("total", "revenue", "value")
"""The first one in an order is its value, as in Segment's own destination for GA4."""

_ORDER_AMOUNTS = ("total", "revenue", "value", "subtotal", "tax", "shipping", "shippingCost", "discount")
_LINE_AMOUNTS = ("unitPrice", "unitSalePrice", "price", "discount", "quantity")
_EVENT_AMOUNTS = ("value", "total", "revenue", "tax", "shipping", "quantity")
_LINE_FIELDS = ("lineItems", "items", "listItems", "listItem")
_MONETARY_EVENTS = frozenset(
    {*_ORDERS.values(), *_CARTS.values(), *_PRODUCTS.values(), *_LISTS.values(), "Refunded Transaction", "Updated Cart"}
)
"""Events whose amounts are money; in other events a `value` can be anything."""


class SemanticEvent(msgspec.Struct, frozen=True, gc=False):
    """An event in SegmentStream's vocabulary. `unreadable` is the path of the first amount that is not a number; "" if none."""

    name: str
    fields: dict[str, Any]
    unreadable: str = ""


def semantic_event(message: Message) -> SemanticEvent:
    """Return `message` in SegmentStream's vocabulary: orders, carts, products, lists and campaigns, with amounts as numbers."""
    name, fields = _translate_segment(message) if message.is_segment else (message.name, message.properties)
    unreadable: list[str] = []
    is_monetary = name in _MONETARY_EVENTS or "product" in fields
    normalized = _normalize(fields, _EVENT_AMOUNTS, "", unreadable if is_monetary else None)
    for key in ("transaction", "cart"):
        if isinstance(normalized.get(key), dict):
            normalized[key] = _normalize_order(normalized[key], key, unreadable)
    if isinstance(normalized.get("product"), dict):
        normalized["product"] = _normalize(normalized["product"], _LINE_AMOUNTS, "product", unreadable)
    _normalize_lines(normalized, "", unreadable)
    return SemanticEvent(name, normalized, unreadable[0] if unreadable else "")


def unreadable_amount(path: str) -> Rejected:
    """Return the outcome of a hit whose amount at `path` is not a number or is ambiguous."""
    return Rejected("unreadable_amount", f"{path} is not an unambiguous amount; send a JSON number, such as 1299.5")


def lines_of(fields: Mapping[str, Any]) -> Sequence[Any]:
    """Return the lines of an order, a cart or a list. A product alone counts as one line."""
    order = object_of(fields.get("transaction")) or object_of(fields.get("cart"))
    value = order.get("lineItems") or order.get("items") or fields.get("listItems") or fields.get("listItem")
    lines: Sequence[Any] = value if isinstance(value, list) else [] if value is None else [value]
    if "product" in fields and not lines:
        return [{"product": fields["product"], "quantity": fields.get("quantity", 1)}]
    return lines


def is_number(value: Any) -> bool:
    """Return whether `value` is a JSON number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def rounded(number: float) -> float:
    """Return `number` without binary rounding errors. Raises OverflowError if it is infinite, which JSON cannot hold."""
    if math.isinf(number):
        raise OverflowError("the product of a price and its quantity is too large")
    return round(number, 6)


def _normalize_order(order: Mapping[str, Any], path: str, unreadable: list[str]) -> dict[str, Any]:
    normalized = _normalize(order, _ORDER_AMOUNTS, path, unreadable)
    _normalize_lines(normalized, f"{path}.", unreadable)
    return normalized


def _normalize_lines(parent: dict[str, Any], path: str, unreadable: list[str]) -> None:
    for key in _LINE_FIELDS:
        lines = parent.get(key)
        if isinstance(lines, list):
            parent[key] = [
                _normalize_line(line, f"{path}{key}.{index}", unreadable) for index, line in enumerate(lines)
            ]
        elif isinstance(lines, dict):
            parent[key] = _normalize_line(lines, f"{path}{key}", unreadable)


def _normalize_line(line: Any, path: str, unreadable: list[str]) -> Any:
    if not isinstance(line, dict):
        return line
    normalized = _normalize(line, _LINE_AMOUNTS, path, unreadable)
    if isinstance(normalized.get("product"), dict):
        normalized["product"] = _normalize(normalized["product"], _LINE_AMOUNTS, f"{path}.product", unreadable)
    return normalized


def _normalize(
    members: Mapping[str, Any], amounts: Iterable[str], path: str, unreadable: list[str] | None
) -> dict[str, Any]:
    """Return a copy of `members` with the fields `amounts` as numbers and the currency in upper case.

    An unreadable amount is removed, and its path is added to `unreadable`. If `unreadable` is None, the amount stays unchanged.
    """
    normalized = dict(members)
    for key in amounts:
        value = normalized.get(key)
        if value is None or is_number(value):
            continue
        number = read_amount(value) if isinstance(value, str) else None
        if number is not None:
            normalized[key] = number
        elif unreadable is not None:
            del normalized[key]
            if not isinstance(value, str) or value.strip():
                unreadable.append(f"{path}.{key}" if path else key)
    currency = normalized.get("currency")
    if isinstance(currency, str) and len(currency.strip()) == 3:
        normalized["currency"] = currency.strip().upper()
    return normalized


def _translate_segment(message: Message) -> tuple[str, dict[str, Any]]:
    name, properties = message.name, message.properties
    if message.type == "page":
        return name, {key: value for key, value in properties.items() if key not in message.page}
    if message.type != "track":
        return name, properties
    if name in _ORDERS:
        return _ORDERS[name], {"transaction": _order(properties, _ORDER_FIELDS)}
    if name in _CARTS:
        step: dict[str, Any] = {key: properties[key] for key in ("step", "option") if key in properties}
        return _CARTS[name], {**step, "cart": _order(_without(properties, step), _CART_FIELDS)}
    if name in _PRODUCTS:
        product = _renamed(properties, _PRODUCT_FIELDS)
        return _PRODUCTS[name], {**_without(properties, _PRODUCT_FIELDS.keys() - {"currency"}), "product": product}
    if name in _LISTS:
        list_id = {"listId": properties["list_id"]} if "list_id" in properties else {}
        lines = [{**line, **list_id} for line in _lines(properties)]
        return _LISTS[name], {**_without(properties, ("products", "list_id")), "listItems": lines}
    if name in _CAMPAIGNS:
        campaign = _renamed(properties, _CAMPAIGN_FIELDS)
        return _CAMPAIGNS[name], {**_without(properties, _CAMPAIGN_FIELDS), "campaign": campaign}
    return SEGMENT_EVENTS.get(name, name), properties


def _order(properties: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    value = next((properties[key] for key in _VALUE_FIELDS if properties.get(key) is not None), None)
    others = {
        names.get(key, key): other for key, other in properties.items() if key not in ("products", *_VALUE_FIELDS)
    }
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


def _without(members: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    removed = set(keys)
    return {key: value for key, value in members.items() if key not in removed}
