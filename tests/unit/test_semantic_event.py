"""Tests of Segment's e-commerce events in SegmentStream's vocabulary, as Google Analytics, OWOX and Meta receive them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.delivery.examples import readable, requests_of
from pipeline.destination import Rejected
from pipeline.destination.semantic_event import SEGMENT_EVENTS
from pipeline.registry import declared_destinations

SETTINGS = {
    "Google Analytics": {"measurement_id": "G-1", "api_secret": "s"},
    "OWOX BI Streaming": {"url": "https://owox.example/mp"},
    "Meta Conversions API": {"pixel_id": "1", "access_token": "t"},
}
CONTEXT = {"userAgent": "Mozilla/5.0", "page": {"url": "https://shop.example/"}}
TIME = "2026-11-24T10:15:30.123Z"
FLAT = {"product_id": "p", "sku": "s", "name": "Shoe", "brand": "Acme", "category": "Shoes", "price": "1 649,75"}
PRODUCT = {
    "id": "p",
    "skuCode": "s",
    "name": "Shoe",
    "manufacturer": "Acme",
    "category": "Shoes",
    "unitSalePrice": 1649.75,
}
LINES = [{"product": PRODUCT, "quantity": 2}]
PRODUCTS = [{**FLAT, "quantity": "2"}]
ORDER = {"order_id": 7, "revenue": 20, "tax": "3,5", "currency": "eur", "products": PRODUCTS}
TRANSACTION = {"orderId": 7, "total": 20, "tax": 3.5, "currency": "EUR", "lineItems": LINES}
CART = {"cart_id": "c", "value": 20, "currency": "EUR", "products": PRODUCTS}
OWN_CART = {"id": "c", "total": 20, "currency": "EUR", "lineItems": LINES}
ONE = {**FLAT, "currency": "EUR", "quantity": 2}
OWN_ONE = {"product": {**PRODUCT, "currency": "EUR"}, "currency": "EUR", "quantity": 2}


def sent(destination: str, example: dict[str, Any]) -> list[Any]:
    requests, early = requests_of(declared_destinations()[destination], SETTINGS[destination], [example])
    return [*map(readable, requests), *early]


@pytest.mark.parametrize("destination", SETTINGS)
@pytest.mark.parametrize(
    ("event", "properties", "name", "fields"),
    [
        ("Order Completed", ORDER, "Completed Transaction", {"transaction": TRANSACTION}),
        ("Order Updated", ORDER, "Updated Transaction", {"transaction": TRANSACTION}),
        ("Order Refunded", ORDER, "Refunded Transaction", {"transaction": TRANSACTION}),
        ("Order Cancelled", ORDER, "Order Cancelled", {"transaction": TRANSACTION}),
        ("Cart Viewed", CART, "Viewed Cart", {"cart": OWN_CART}),
        ("Checkout Started", CART, "Started Order", {"cart": OWN_CART}),
        ("Checkout Step Viewed", {"step": 2, **CART}, "Viewed Checkout Step", {"step": 2, "cart": OWN_CART}),
        ("Checkout Step Completed", {"step": 1, **CART}, "Completed Checkout Step", {"step": 1, "cart": OWN_CART}),
        ("Payment Info Entered", CART, "Added Payment Info", {"cart": OWN_CART}),
        ("Product Viewed", ONE, "Viewed Product Detail", OWN_ONE),
        ("Product Clicked", ONE, "Clicked Product", OWN_ONE),
        ("Product Added", ONE, "Added Product", OWN_ONE),
        ("Product Removed", ONE, "Removed Product", OWN_ONE),
        ("Product Added to Wishlist", ONE, "Added Product to Wishlist", OWN_ONE),
        ("Product Removed from Wishlist", ONE, "Removed Product from Wishlist", OWN_ONE),
        ("Wishlist Product Added to Cart", ONE, "Added Product", OWN_ONE),
        (
            "Product List Viewed",
            {"list_id": "l", "products": PRODUCTS},
            "Viewed Product",
            {"listItems": [{**LINES[0], "listId": "l"}]},
        ),
        (
            "Product List Filtered",
            {"list_id": "l", "products": PRODUCTS},
            "Product List Filtered",
            {"listItems": [{**LINES[0], "listId": "l"}]},
        ),
        (
            "Promotion Viewed",
            {"promotion_id": 5, "name": "Sale", "creative": "red", "position": "top"},
            "Viewed Campaign",
            {"campaigns": [{"id": 5, "name": "Sale", "design": "red", "position": "top"}]},
        ),
        ("Promotion Clicked", {"promotion_id": "5"}, "Clicked Campaign", {"campaign": {"id": "5"}}),
        ("Products Searched", {"query": "shoes"}, "Searched Products", {"query": "shoes"}),
        ("Signed Up", {"plan": "gold"}, "Registered", {"plan": "gold"}),
        ("Signed In", {}, "Logged In", {}),
        ("My Event", {"value": "12,5", "a": "b"}, "My Event", {"value": 12.5, "a": "b"}),
    ],
)
def test_both_dialects_give_the_same_request(
    destination: str, event: str, properties: dict[str, Any], name: str, fields: dict[str, Any]
) -> None:
    message = {
        "type": "track",
        "event": event,
        "userId": "u",
        "properties": properties,
        "context": CONTEXT,
        "messageId": "1",
    }
    own = {"hitId": "1", "event": {"name": name, "user": {"userId": "u"}, **fields}, "context": CONTEXT}
    found = sent(destination, {"segment": message})
    assert found == sent(destination, own)
    assert found and not isinstance(found[0], Rejected)


def test_segments_checkout_step_1_is_not_a_second_begin_checkout() -> None:
    message = {"type": "track", "event": "Checkout Step Viewed", "userId": "u", "properties": {"step": 1}}
    (request,) = sent("Google Analytics", {"segment": message})
    assert request["body"]["events"][0]["name"] == "checkout_progress"


@pytest.mark.parametrize("destination", SETTINGS)
@pytest.mark.parametrize(
    ("name", "fields", "path"),
    [
        ("Completed Transaction", {"transaction": {"total": "1,299"}}, "transaction.total"),
        ("Completed Transaction", {"transaction": {"total": True}}, "transaction.total"),
        ("Completed Transaction", {"transaction": {"total": 5, "tax": "a lot"}}, "transaction.tax"),
        (
            "Completed Transaction",
            {"transaction": {"lineItems": [{"product": {"id": "1"}}, {"product": {"unitPrice": "1.299"}}]}},
            "transaction.lineItems.1.product.unitPrice",
        ),
        ("Viewed Cart", {"cart": {"lineItems": [{"product": {}, "quantity": "two"}]}}, "cart.lineItems.0.quantity"),
        ("Added Product", {"product": {"id": "1"}, "quantity": "x"}, "quantity"),
        ("My Event", {"product": {"id": "1", "price": "€ 12"}}, "product.price"),
    ],
)
def test_ambiguous_amount_is_rejected_with_its_path(
    destination: str, name: str, fields: dict[str, Any], path: str
) -> None:
    (found,) = sent(destination, {"event": {"name": name, "user": {"userId": "u"}, **fields}, "context": CONTEXT})
    assert isinstance(found, Rejected)
    assert found.reason == "unreadable_amount"
    assert found.message.startswith(f"{path} ")


@pytest.mark.parametrize("value", ["", " ", None])
def test_empty_amount_is_omitted(value: str | None) -> None:
    event = {"name": "Completed Transaction", "user": {"userId": "u"}, "transaction": {"orderId": "1", "total": value}}
    (request,) = sent("Google Analytics", {"event": event})
    assert request["body"]["events"][0]["params"] == {"transaction_id": "1", "engagement_time_msec": 1}


def test_value_of_a_non_monetary_event_stays_unchanged() -> None:
    (request,) = sent("Google Analytics", {"event": {"name": "Rated", "user": {"userId": "u"}, "value": "high"}})
    assert request["body"]["events"][0]["params"]["value"] == "high"


def test_every_translated_segment_event_is_in_the_docs() -> None:
    docs = (Path(__file__).parent.parent.parent / "docs" / "reference" / "semantic-events.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in docs.splitlines() if line.startswith("| ")][1:]
    documented = {event: row[1] for row in rows for event in re.split(r", ", row[4]) if event}
    assert documented == {event: name for event, name in SEGMENT_EVENTS.items() if event != name}
