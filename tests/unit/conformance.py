"""The conformance suite of destinations with an HTTP sink. Each function yields its findings, so that tests can check the suite."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.delivery.answers import response_text, with_response_text
from pipeline.delivery.batching import chunks_of
from pipeline.delivery.deliverers import event_of
from pipeline.delivery.examples import outcome_name, routed
from pipeline.delivery.redaction import Redaction
from pipeline.destination import Destination, Event, Http, HttpResponse, Outcome, Rejected
from pipeline.destination.message import NAMES

STATUSES = (200, 204, 400, 401, 403, 404, 408, 410, 413, 422, 425, 429, 500, 503)
BODIES = (
    *(b"", b"no JSON", b"[]", b"{}", b'{"error": 7}', b'{"error": {"code": "x"}}', b"null", b'"text"'),
    *(
        b'"\xff"',
        b"[" * 60_000,
        b'{"failed_records": [{"index": 7}]}',
        b'{"events_with_invalid_fields": {"time": [7]}}',
    ),
)
_FRAME_BYTES = 500
_NOW_SECONDS = 1_795_515_400.0


def http_of(destination: Destination) -> Http:
    assert isinstance(destination.sink, Http)
    return destination.sink


def random_hit(draw: random.Random, number: int) -> dict[str, Any]:
    names = [
        "Order Completed",
        "Product Added",
        "Cart Viewed",
        "Viewed Page",
        "Completed Transaction",
        "Odd näme!",
        "",
        "x" * 300,
        "session_start",
        "Added Product",
    ]
    values: list[Any] = [
        None,
        True,
        7,
        -1.5,
        10**30,
        "text",
        "\u0000",
        "é" * 200,
        [],
        [1, {"a": 2}],
        {},
        {"a": {"b": 1}},
    ]

    def some(depth: int = 0) -> Any:
        if depth < 2 and draw.random() < 0.3:
            return {draw.choice("abcde_$ "): some(depth + 1) for _ in range(draw.randrange(4))}
        return draw.choice(values)

    places = ["a", "b c", "_x", "transaction", "product", "page", "value", "campaigns", "listItems", "cart"]
    event: dict[str, Any] = {draw.choice(places): some()}
    name: Any = draw.choice([*names, 7, None])
    if name is not None:
        event["name"] = name
    event["user"] = draw.choice([{"userId": "u"}, {"anonymousId": "a", "email": "A@b.c", "phone": "+1 (2)"}])
    if draw.random() < 0.3:
        kind = draw.choice(["track", *NAMES])
        event |= {
            "type": kind,
            "name": NAMES.get(kind, name),
            "timestamp": draw.choice([*values, "2026-11-22T10:00:00Z"]),
        }
        event |= {part: {draw.choice(places): some(), "products": some()} for part in ("properties", "traits")}
        event |= {"groupId": some(), "previousId": some(), "title": some()}
    context = draw.choice(
        [{}, {"userAgent": "curl", "page": some(), "ip": "192.0.2.1", "os": some(), "location": some()}]
    )
    return {
        "hitId": draw.choice([f"hit-{number}", f"näme {number}", str(number) * 20]),
        "event": event,
        "context": context,
    }


def broken_limits(destination: Destination, settings: Any, hits: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield transforms that raise, hits that are in no request or in several, and requests over the limits."""
    http = http_of(destination)
    events = [event_of(destination, http, routed(hit), settings) for hit in hits]
    yield from (repr(event) for event in events if isinstance(event, Rejected) and event.reason == "transform_failed")
    chunks, too_large = chunks_of(events, http.limits)
    placed = sorted([position for chunk in chunks for position in chunk] + list(too_large))
    if placed != [position for position, event in enumerate(events) if isinstance(event, Event)]:
        yield "hits in no request or in several"
    for chunk in chunks:
        together = [event for event in (events[position] for position in chunk) if isinstance(event, Event)]
        if len(together) > http.limits.events:
            yield f"{len(together)} events in a request; the limit is {http.limits.events}"
        if len({event.group for event in together}) > 1:
            yield "several groups in a request"
        body = http.request(together, settings, _NOW_SECONDS).body
        if len(body) > http.limits.request_bytes + _FRAME_BYTES:
            yield f"{len(body)} bytes in a request; the limit is {http.limits.request_bytes}"
        try:
            json.loads(body)
        except ValueError:
            yield "a body that is not JSON"


def incomplete_outcomes(destination: Destination, status: int, body: bytes) -> Iterator[str]:
    """Yield responses with a missing outcome of an event, or with one that violates the contract (contract.md, section 6)."""
    events = [Event(f"hit-{number}", b"{}") for number in range(3)]
    verdict = http_of(destination).verdict(HttpResponse(status, {}, body), events)
    outcomes = list(verdict) if isinstance(verdict, Sequence) else [verdict] * len(events)
    if len(outcomes) != len(events) or not all(isinstance(outcome, Outcome) for outcome in outcomes):
        yield f"{outcomes} for {len(events)} events"
    names = {outcome_name(outcome) for outcome in outcomes}
    if status in (408, 429, 500, 503) and names != {"retry"}:
        yield f"{status}: {names} instead of retry"
    if status == 400 and names == {"delivered"}:
        yield "400: all events are delivered"
    if status == 401 and names != {"misconfigured"}:
        yield f"{status}: {names} instead of misconfigured"


def told_credentials(destination: Destination, data: Mapping[str, Any]) -> Iterator[str]:
    """Yield credentials in outcomes and events, which may be logged or stored, also if the response repeats them."""
    http = http_of(destination)
    settings = destination.settings.model_validate(data["settings"])
    named = set(data.get("secret", ()))
    for name in data["settings"]:
        if any(part in name for part in ("secret", "token", "key", "password")) and name not in named:
            yield f"the examples do not list {name} under `secret`"
    secrets = [text for name in named for text in texts_of(data["settings"][name])]
    made = [event_of(destination, http, routed(hit), settings) for hit in data["examples"][0]["hits"]]
    redaction = Redaction.of(settings)
    if sendable := [event for event in made if isinstance(event, Event)]:
        redaction = redaction.with_request(http.request(sendable[:1], settings, _NOW_SECONDS))
    told = [repr(event) for event in made]
    for status in STATUSES:
        for secret in secrets:
            for body in (
                {},
                {"error": secret},
                {"error": {"message": secret, "code": 100}},
                {"message": secret},
                secret,
            ):
                answer = HttpResponse(status, {}, json.dumps(body).encode())
                verdict = http.verdict(answer, [Event("hit-1", b"{}")])
                told.append(repr(with_response_text(verdict, partial(response_text, answer, redaction))))
    yield from {f"{text} contains a credential" for text in told for secret in secrets if secret in text}


def texts_of(value: Any) -> Iterator[str]:
    """Yield the texts in a setting."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_of(part)
