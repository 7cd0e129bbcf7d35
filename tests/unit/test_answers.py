"""What a destination said, from its answer to the dead letter and to the ledger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.codec.dead_letter import DeadLetter
from pipeline.delivery.answers import SAID_CHARACTERS, redacted, said_by, with_said
from pipeline.delivery.attempts import Attempts
from pipeline.delivery.pauses import pause_entry
from pipeline.destination import Delivered, HttpResponse, Misconfigured, Rejected, Retry, Verdict, judge
from pipeline.redaction import Redaction
from pipeline.telemetry.waiting import WAITING, Waiting
from tests.guard import FakeGuard

pytestmark = pytest.mark.anyio

NOTHING = Redaction(frozenset())


def message_of(rejected: Rejected) -> str:
    letter = DeadLetter("deliver", rejected.reason, rejected.text, "t", 0, 0, 0)
    message = dict(letter.headers())["message"]
    assert isinstance(message, bytes)
    return message.decode()


def told(status: int, body: bytes, redaction: Redaction = NOTHING, **headers: str) -> str:
    response = HttpResponse(status, headers, body)
    verdict = with_said(judge(response), lambda: said_by(response, redaction))
    assert isinstance(verdict, Rejected)
    return message_of(verdict)


def test_a_dead_letter_holds_the_status_and_the_answer() -> None:
    assert told(422, b'{"error": "no list"}') == 'the destination answers 422: {"error": "no list"}'
    assert told(422, b" \n") == "the destination answers 422"


def test_control_characters_are_escaped_and_a_long_answer_is_cut_behind_the_redaction() -> None:
    assert told(400, b"a\nb\x1b[2Jc\xe2\x80\xae") == "the destination answers 400: a\\nb\\x1b[2Jc\\u202e"
    secret = "0123456789" * 10
    message = told(400, b"x" * 400 + secret.encode() + b"y" * 9_000, Redaction(frozenset({secret})))
    assert len(message) == 500 and "***" in message and "0123" not in message and message.endswith("…")


def test_a_body_that_can_not_be_read_is_described() -> None:
    assert "5 bytes, encoded as gzip" in told(400, b"\x1f\x8b\x00\x00\x00", **{"content-encoding": "gzip"})
    assert told(400, b"caf\xe9") == "the destination answers 400: caf\ufffd"


def test_an_answer_per_event_gets_into_no_other_dead_letter() -> None:
    verdict: Verdict = [Rejected("invalid_event", "price: no number"), Delivered()]
    assert with_said(verdict, lambda: "all of it") == verdict
    assert with_said(Delivered(), lambda: "all of it") == Delivered()


def test_the_texts_of_every_sink_are_redacted() -> None:
    redaction = Redaction(frozenset({"s3cret-key"}))
    outcomes: list[Any] = [Rejected("r", "s3cret-key"), Retry("s3cret-key"), Misconfigured("s3cret-key"), Delivered()]
    for verdict in (redacted(outcomes, redaction), [redacted(outcome, redaction) for outcome in outcomes]):
        assert "s3cret" not in repr(verdict) and repr(verdict).count("***") == 3


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (Retry("http_503", said="busy\x07"), "no success within give_up_after; the last failure: http_503: busy\\x07"),
        (
            Misconfigured("the destination answers 401", "no such user"),
            "no success within give_up_misconfigured_after; the last failure: the destination answers 401: no such user",
        ),
    ],
)
async def test_who_is_given_up_bears_the_last_failure_with_its_text(last: Retry | Misconfigured, says: str) -> None:
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
    assert message_of(outcome) == says


async def test_the_ledger_gets_what_the_destination_said_and_the_log_does_not(caplog: pytest.LogCaptureFixture) -> None:
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


def test_the_board_keeps_since_when_a_connection_waits() -> None:
    WAITING.begin("c", Waiting(True, "one", 1.0, since=1.0, said="x"))
    WAITING.begin("c", Waiting(True, "two", 2.0, since=5.0, said="y"))
    waiting = WAITING.connections["c"]
    WAITING.end("c")
    assert (waiting.reason, waiting.said, waiting.since) == ("two", "y", 1.0)


def test_the_longest_answer_fits_into_a_dead_letter_and_into_json() -> None:
    said = said_by(HttpResponse(500, {}, b"\x00" * 65_536), NOTHING)
    assert len(said) == SAID_CHARACTERS
    json.dumps(said).encode()
