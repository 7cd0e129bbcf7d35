"""Runs the examples of a destination: hits with the exact requests or rows that they become, and responses with their outcomes.

They are stored in `<slug>.yaml` beside the tests. The tests run them, and `hitrouter destinations NAME` shows one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline.codec.hit import decode_hit
from pipeline.codec.routed_hit import encode_routed_hit, with_options
from pipeline.delivery.age import too_old
from pipeline.delivery.batching import chunks_of
from pipeline.delivery.deliverers import ReadHit, event_of
from pipeline.destination import (
    Destination,
    Event,
    Http,
    HttpRequest,
    HttpResponse,
    Outcome,
    RoutedHit,
    Skipped,
)
from pipeline.sinks.table_row import row_of
from pipeline.stages.accept import Request, Sender, accept_batch

_decode = msgspec.json.Decoder(RoutedHit).decode
_NOW_SECONDS = 1_795_515_400.0


def hit_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hit of an example. A message under `segment` is converted as /v1/batch converts it."""
    if "segment" not in example:
        return dict(example)
    body = json.dumps({"batch": [example["segment"]]}).encode()
    request = Request(Sender("shop", False), "/v1/batch", "application/json", 0, "", "")
    records = accept_batch(body, request, bytes, lambda key, origin: None)
    assert isinstance(records, list), records
    hit: dict[str, Any] = json.loads(records[0].value)
    return {**hit, **{key: value for key, value in example.items() if key != "segment"}}


def routed(example: Mapping[str, Any]) -> ReadHit:
    """Return the routed hit of an example, which can set members such as `door: public`."""
    body = {"context": {}, **hit_of(example)}
    options = body.pop("options", None)
    sent_at = body.pop("sentAt", "2026-11-24T10:15:30.123Z")
    hit_id = body.pop("hitId", "hit-1")
    is_public = body.pop("door", "secret") == "public"
    decoded = decode_hit(json.dumps(body).encode())
    received_at = "2026-11-24T10:15:31.000Z"
    plain = encode_routed_hit(decoded, hit_id, "shop", received_at, sent_at, decoded.context, is_public)
    value = with_options(plain, json.dumps(options).encode() if options is not None else None)
    return ReadHit(_decode(value), value)


def rows_of(hits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the table rows of `hits`, with JSON columns as text."""
    return [row_of(routed(hit).hit)._asdict() for hit in hits]


def requests_of(
    destination: Destination, settings: Mapping[str, Any], hits: Sequence[Mapping[str, Any]]
) -> tuple[list[HttpRequest], list[Outcome]]:
    """Return the requests of `hits`, and the outcomes of the hits without a request, in order."""
    http = destination.sink
    assert isinstance(http, Http)
    checked = destination.settings.model_validate(settings)
    made = [event_of(destination, http, routed(hit), checked) for hit in hits]
    events = [too_old(event, http.limits, _NOW_SECONDS) or event for event in made]
    chunks, too_large = chunks_of(events, http.limits)
    requests = []
    for chunk in chunks:
        together = [event for event in (events[position] for position in chunk) if isinstance(event, Event)]
        requests.append(http.request(together, checked, _NOW_SECONDS))
    early: list[Outcome] = []
    for position, event in enumerate(events):
        if not isinstance(event, Event):
            early.append(event)
        elif position in too_large:
            early.append(too_large[position])
    return requests, early


def outcomes_of(destination: Destination, response: Mapping[str, Any], events: int) -> list[str]:
    """Return the names of the outcomes of a response to a request of `events` events (hit-0, hit-1, ...)."""
    http = destination.sink
    assert isinstance(http, Http)
    body = response.get("body", "")
    http_response = HttpResponse(
        response["status"],
        response.get("headers", {}),
        # A body may also be an empty object (`body: {}`).
        body.encode() if isinstance(body, str) else json.dumps(body).encode(),
    )
    verdict = http.verdict(http_response, [Event(f"hit-{number}", b"{}") for number in range(events)])
    each = verdict if isinstance(verdict, Sequence) else [verdict] * events
    return [outcome_name(outcome) for outcome in each]


def outcome_name(outcome: Outcome) -> str:
    """Return `delivered`, `retry`, `rejected`, `misconfigured`, or `skipped: reason`."""
    name = type(outcome).__name__.lower()
    return f"{name}: {outcome.reason}" if isinstance(outcome, Skipped) else name


def readable(request: HttpRequest) -> dict[str, Any]:
    """Return a request as an example shows it, with a JSON body decoded."""
    shown = dataclasses.asdict(request)
    try:
        shown["body"] = json.loads(request.body)
    except ValueError:
        shown["body"] = request.body.decode(errors="replace")
    return shown
