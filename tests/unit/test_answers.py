"""The text of a response in dead letters, the ledger and the log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.codec.dead_letter import DeadLetter
from pipeline.delivery.answers import RESPONSE_TEXT_CHARACTERS, redacted, response_text, with_response_text
from pipeline.delivery.attempts import Attempts
from pipeline.delivery.pauses import pause_entry
from pipeline.delivery.redaction import Redaction
from pipeline.destination import Delivered, HttpResponse, Misconfigured, Rejected, Retry, Verdict, judge
from pipeline.telemetry.waiting import WAITING, Waiting
from tests.guard import FakeGuard

pytestmark = pytest.mark.anyio

NO_SECRETS = Redaction(frozenset())


def dead_letter_message(rejected: Rejected) -> str:
    dead_letter = DeadLetter("deliver", rejected.reason, rejected.text, "t", 0, 0, 0)
    message = dict(dead_letter.headers())["message"]
    assert isinstance(message, bytes)
    return message.decode()


def dead_letter_text(status: int, body: bytes, redaction: Redaction = NO_SECRETS, **headers: str) -> str:
    response = HttpResponse(status, headers, body)
    verdict = with_response_text(judge(response), lambda: response_text(response, redaction))
    assert isinstance(verdict, Rejected)
    return dead_letter_message(verdict)


def test_dead_letter_contains_status_and_response_text() -> None:
    assert dead_letter_text(422, b'{"error": "no list"}') == 'the destination answers 422: {"error": "no list"}'
    assert dead_letter_text(422, b" \n") == "the destination answers 422"


def test_response_text_is_escaped_and_cut_after_redaction() -> None:
    assert dead_letter_text(400, b"a\nb\x1b[2Jc\xe2\x80\xae") == "the destination answers 400: a\\nb\\x1b[2Jc\\u202e"
    secret = "0123456789" * 10
    message = dead_letter_text(400, b"x" * 400 + secret.encode() + b"y" * 9_000, Redaction(frozenset({secret})))
    assert len(message) == 500 and "***" in message and "0123" not in message and message.endswith("…")


def test_undecodable_body_is_described() -> None:
    assert "5 bytes, encoded as gzip" in dead_letter_text(400, b"\x1f\x8b\x00\x00\x00", **{"content-encoding": "gzip"})
    assert dead_letter_text(400, b"caf\xe9") == "the destination answers 400: caf\ufffd"


def test_verdict_per_event_gets_no_response_text() -> None:
    verdict: Verdict = [Rejected("invalid_event", "price: no number"), Delivered()]
    assert with_response_text(verdict, lambda: "all of it") == verdict
    assert with_response_text(Delivered(), lambda: "all of it") == Delivered()


def test_secrets_are_removed_from_texts_of_every_outcome() -> None:
    redaction = Redaction(frozenset({"s3cret-key"}))
    outcomes: list[Any] = [Rejected("r", "s3cret-key"), Retry("s3cret-key"), Misconfigured("s3cret-key"), Delivered()]
    for verdict in (redacted(outcomes, redaction), [redacted(outcome, redaction) for outcome in outcomes]):
        assert "s3cret" not in repr(verdict) and repr(verdict).count("***") == 3


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (Retry("http_503", said="busy\x07"), "no success within give_up_after; the last failure: http_503: busy\\x07"),
        (
            Misconfigured("the destination answers 401", "no such user"),
            "no success within give_up_misconfigured_after; the last failure: the destination answers 401: no such user",
        ),
    ],
)
async def test_given_up_hit_contains_the_last_failure_with_its_text(last: Retry | Misconfigured, text: str) -> None:
    now = 0.0

    async def send(items: Sequence[str]) -> Verdict:
        return last

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    attempts = Attempts("c", send, 1, 60.0, lambda: now, sleep, lambda: 1.0, give_up_misconfigured_after_seconds=60.0)
    (outcome,) = await attempts.deliver(["a"], [[[0]]], FakeGuard())
    WAITING.end("c")
    assert isinstance(outcome, Rejected) and outcome.reason == "gave_up"
    assert dead_letter_message(outcome) == text


async def test_response_text_reaches_the_ledger_but_not_the_log(caplog: pytest.LogCaptureFixture) -> None:
    entries: list[str] = []
    now = 0.0
    answers = iter([Misconfigured("the destination answers 401", "no user a@b.example"), Delivered()])

    async def send(items: Sequence[str]) -> Verdict:
        return next(answers)

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        entries.extend(entry.reason for entry in pause_entry("t", "c", WAITING.connections["c"]).counts)

    await Attempts("c", send, 1, 60.0, lambda: now, sleep, lambda: 1.0).deliver(["a"], [[[0]]], FakeGuard())
    assert set(entries) == {"the destination answers 401: no user a@b.example"}
    assert "401" in caplog.text and "a@b.example" not in caplog.text


def test_board_keeps_the_start_of_a_pause() -> None:
    WAITING.begin("c", Waiting(True, "one", 1.0, since=1.0, said="x"))
    WAITING.begin("c", Waiting(True, "two", 2.0, since=5.0, said="y"))
    waiting = WAITING.connections["c"]
    WAITING.end("c")
    assert (waiting.reason, waiting.said, waiting.since) == ("two", "y", 1.0)


def test_longest_response_text_fits_a_dead_letter_and_json() -> None:
    said = response_text(HttpResponse(500, {}, b"\x00" * 65_536), NO_SECRETS)
    assert len(said) == RESPONSE_TEXT_CHARACTERS
    json.dumps(said).encode()
