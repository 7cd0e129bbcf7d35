"""The suite that every destination passes, on destinations with a bug: it must find each."""

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


def found(sink: Http, data: dict[str, Any] = DATA) -> list[str]:
    """What the suite says of it, of fewer hits than those of the real ones."""
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


def test_a_sound_destination_passes() -> None:
    assert found(SOUND) == []


def test_a_request_over_the_limit_is_found() -> None:
    def request(events: Sequence[Event], settings: Any, now_seconds: float) -> HttpRequest:
        return HttpRequest("POST", "https://a.example/", json_list([*events, *events]))

    said = found(replace(SOUND, request=request))
    assert said and all(text.endswith("bytes in a request; the limit is 4000") for text in said)


def test_a_transform_that_raises_for_an_odd_hit_is_found() -> None:
    said = found(replace(SOUND, event=lambda delivery: Event("id", encode_json(delivery.event["name"].lower()))))
    assert said and all("transform_failed" in text for text in said)


def test_a_credential_in_an_error_is_found_also_when_the_destination_says_it_back() -> None:
    def own(delivery: Delivery) -> Rejected:
        return Rejected("refused", f"not with {delivery.settings.api_key}")

    def echo(response: HttpResponse, events: Sequence[Event]) -> Verdict:
        return Rejected("http_400", response.body.decode()) if response.status == 400 else judge(response, events)

    for sink in (replace(SOUND, event=own), replace(SOUND, verdict=echo)):
        said = found(sink)
        assert said and all("tells a credential" in text for text in said)


def test_a_credential_that_the_examples_do_not_name_is_found() -> None:
    assert found(SOUND, {**DATA, "secret": []}) == ["the examples do not name api_key among the `secret`"]


def test_an_event_without_an_outcome_is_found() -> None:
    def verdict(response: HttpResponse, events: Sequence[Event]) -> Verdict:
        return [Delivered() for _ in events[1:]] if response.status < 300 else judge(response, events)

    (said,) = found(replace(SOUND, verdict=verdict))
    assert said.endswith("for 3 events")


def test_a_verdict_that_takes_an_outage_for_a_refusal_is_found() -> None:
    said = found(
        replace(
            SOUND, verdict=lambda response, events: Rejected("http", "no") if response.status > 299 else Delivered()
        )
    )
    assert said == ["401: {'rejected'} instead of misconfigured", "503: {'rejected'} instead of retry"]
