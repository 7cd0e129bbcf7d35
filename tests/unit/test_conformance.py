"""The conformance suite finds the bug of each faulty destination."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.destination import (
    Delivered,
    Delivery,
    Destination,
    Event,
    Http,
    HttpRequest,
    HttpResponse,
    Limits,
    Rejected,
    Settings,
    Verdict,
    encode_json,
    json_list,
    judge,
)
from tests.unit.conformance import broken_limits, incomplete_outcomes, random_hit, told_credentials


class _Settings(Settings):
    api_key: str


def _event(delivery: Delivery) -> Event:
    return Event(delivery.hit.hitId, encode_json({"id": delivery.hit.hitId, **delivery.properties}))


def _request(events: Sequence[Event], settings: Any, now_seconds: float) -> HttpRequest:
    return HttpRequest("POST", "https://a.example/", json_list(events))


SOUND = Http(_event, _request, limits=Limits(events=20, request_bytes=4_000))
DATA: dict[str, Any] = {
    "settings": {"api_key": "k3y"},
    "secret": ["api_key"],
    "examples": [{"hits": [{"event": {"name": "E", "user": {"userId": "u"}}}]}],
}


def findings_of(sink: Http, data: dict[str, Any] = DATA) -> list[str]:
    """Return the findings of the suite, with fewer hits than for real destinations."""
    destination = Destination(name="Copy", summary="A copy.", settings=_Settings, sink=sink)
    draw = random.Random(7)
    hits = [random_hit(draw, number) for number in range(300)]
    return [
        *broken_limits(destination, _Settings(api_key="k3y"), hits),
        *incomplete_outcomes(destination, 200, b"{}"),
        *incomplete_outcomes(destination, 401, b"{}"),
        *incomplete_outcomes(destination, 503, b"{}"),
        *told_credentials(destination, data),
    ]


def test_correct_destination_passes() -> None:
    assert findings_of(SOUND) == []


def test_request_over_the_limit_is_found() -> None:
    def request(events: Sequence[Event], settings: Any, now_seconds: float) -> HttpRequest:
        return HttpRequest("POST", "https://a.example/", json_list([*events, *events]))

    findings = findings_of(replace(SOUND, request=request))
    assert findings and all(text.endswith("bytes in a request; the limit is 4000") for text in findings)


def test_transform_that_raises_is_found() -> None:
    findings = findings_of(
        replace(SOUND, event=lambda delivery: Event("id", encode_json(delivery.event["name"].lower())))
    )
    assert findings and all("transform_failed" in text for text in findings)


def test_credential_in_an_outcome_or_a_response_is_found() -> None:
    def own(delivery: Delivery) -> Rejected:
        return Rejected("refused", f"not with {delivery.settings.api_key}")

    def echo(response: HttpResponse, events: Sequence[Event]) -> Verdict:
        return Rejected("http_400", response.body.decode()) if response.status == 400 else judge(response, events)

    for sink in (replace(SOUND, event=own), replace(SOUND, verdict=echo)):
        findings = findings_of(sink)
        assert findings and all("contains a credential" in text for text in findings)


def test_unlisted_credential_of_the_examples_is_found() -> None:
    assert findings_of(SOUND, {**DATA, "secret": []}) == ["the examples do not list api_key under `secret`"]


def test_event_without_an_outcome_is_found() -> None:
    def verdict(response: HttpResponse, events: Sequence[Event]) -> Verdict:
        return [Delivered() for _ in events[1:]] if response.status < 300 else judge(response, events)

    (findings,) = findings_of(replace(SOUND, verdict=verdict))
    assert findings.endswith("for 3 events")


def test_verdict_that_rejects_during_an_outage_is_found() -> None:
    findings = findings_of(
        replace(
            SOUND, verdict=lambda response, events: Rejected("http", "no") if response.status > 299 else Delivered()
        )
    )
    assert findings == ["401: {'rejected'} instead of misconfigured", "503: {'rejected'} instead of retry"]
