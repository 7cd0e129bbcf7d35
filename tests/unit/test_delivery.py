"""Attempts and outcomes (contract.md, section 6)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipeline.codec.avro import Framing
from pipeline.codec.public_address import is_public
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.delivery.attempts import Attempts
from pipeline.delivery.backoff import backoff_seconds
from pipeline.delivery.batching import lanes_of
from pipeline.delivery.deliverers import RoutedHits
from pipeline.destination import (
    Delivered,
    Event,
    HttpRequest,
    HttpResponse,
    Limits,
    Misconfigured,
    Outcome,
    Rejected,
    Retry,
    judge,
)
from pipeline.sinks.http import HttpSink, retry_after_seconds
from pipeline.telemetry.waiting import WAITING, Waiting
from tests.guard import FakeGuard, stale_when

pytestmark = pytest.mark.anyio

OPEN = FakeGuard()

_HITS = RoutedHits(Framing(ROUTED_HIT_SCHEMA))


class FakeDestination:
    """Answers by the names of a request; the clock advances only by sleeping."""

    def __init__(self, answers: Callable[[str, int], Outcome]) -> None:
        self.answers = answers
        self.sent: list[str] = []
        self.now = 0.0

    async def send(self, names: Sequence[str]) -> Outcome:
        name = "".join(names)
        self.sent.append(name)
        return self.answers(name, self.sent.count(name))

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def attempts(self, give_up_after: float = 3600.0, per_second: float | None = None) -> Attempts[str]:
        return Attempts("c", self.send, 4, give_up_after, lambda: self.now, self.sleep, lambda: 1.0, per_second)

    async def deliver(
        self, names: str, guard: FakeGuard, *, size: int = 1, give_up_after: float = 3600.0
    ) -> list[Outcome | None]:
        lanes = [[list(range(start, min(start + size, len(names))))] for start in range(0, len(names), size)]
        return await self.attempts(give_up_after).deliver(list(names), lanes, guard)


async def test_failing_hit_is_retried_and_others_are_not() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_500") if name == "b" and time < 3 else Delivered())
    assert await fake.deliver("abc", OPEN) == [Delivered()] * 3
    assert fake.sent.count("a") == fake.sent.count("c") == 1
    assert fake.sent.count("b") == 3


async def test_exception_of_the_sink_is_retried() -> None:
    def answers(name: str, time: int) -> Outcome:
        if name == "b" and time < 5:
            raise ValueError("no row of three")
        return Delivered()

    fake = FakeDestination(answers)
    assert await fake.deliver("abc", OPEN) == [Delivered()] * 3
    assert fake.sent.count("b") == 5 and fake.now > 0.0


async def test_rebuilt_connection_clears_the_pause_of_its_previous_instance() -> None:
    WAITING.begin("c", Waiting(False, "Session is closed", 1.0))
    fake = FakeDestination(lambda name, time: Delivered())
    await fake.deliver("a", OPEN)
    assert "c" not in WAITING.connections


async def test_connection_that_left_the_board_is_not_reported_as_paused() -> None:
    WAITING.deregister("c")
    fake = FakeDestination(lambda name, time: Retry("Session is closed") if time < 5 else Delivered())
    seen: list[bool] = []
    await fake.deliver("a", FakeGuard(lambda: seen.append("c" in WAITING.connections)))
    WAITING.register("c")
    assert len(seen) > 5 and not any(seen)


async def test_single_probes_follow_three_consecutive_failures() -> None:
    fake = FakeDestination(lambda name, time: Retry("down") if len(fake.sent) <= 6 else Delivered())
    await fake.attempts().deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN)
    # The probes rotate over the lanes, because the cause may be one hit.
    assert fake.sent == list("aaaabcabc")


async def test_single_failure_delays_only_its_own_lane() -> None:
    sent: list[tuple[str, float]] = []
    fake = FakeDestination(lambda name, time: Delivered())

    async def send(names: Sequence[str]) -> Outcome:
        sent.append((names[0], fake.now))
        return Retry("http_500") if len(sent) == 2 else Delivered()

    async def sleep(seconds: float) -> None:
        until = fake.now + seconds
        for _ in range(20):  # lets the other lanes finish first
            await asyncio.sleep(0)
        fake.now = max(fake.now, until)

    attempts = Attempts("c", send, 4, 3600.0, lambda: fake.now, sleep, lambda: 1.0)
    await attempts.deliver(list("abcxyz"), [[[0], [1], [2]], [[3], [4], [5]]], OPEN)
    assert sent == [*((name, 0.0) for name in "abxyz"), ("b", 1.0), ("c", 1.0)]


async def test_response_to_a_request_from_before_the_pause_does_not_change_it() -> None:
    fake = FakeDestination(lambda name, time: Delivered())
    answers = iter([Retry("busy", 30.0), Delivered(), Retry("http_500"), Delivered(), Delivered()])
    sent: list[float] = []

    async def send(names: Sequence[str]) -> Outcome:
        sent.append(fake.now)
        answer = next(answers)
        await asyncio.sleep(0)  # all three requests are in flight
        return answer

    attempts = Attempts("c", send, 4, 3600.0, lambda: fake.now, fake.sleep, lambda: 1.0)
    assert await attempts.deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN) == [Delivered()] * 3
    assert sent == [0.0, 0.0, 0.0, 30.0, 30.0]


async def test_hit_is_given_up_after_the_limit_with_the_last_reason() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_503"))
    outcomes = await fake.deliver("a", OPEN, give_up_after=10.0)
    assert isinstance(outcomes[0], Rejected)
    assert outcomes[0].reason == "gave_up" and "http_503" in outcomes[0].message
    assert fake.now >= 10


def attempts_with_limit(fake: FakeDestination, limit: float | None) -> Attempts[str]:
    return Attempts(
        *("c", fake.send, 4, 10.0, lambda: fake.now, fake.sleep, lambda: 1.0),
        give_up_misconfigured_after_seconds=limit,
    )


async def test_hit_refused_alone_waits_for_the_operator_unless_there_is_a_limit() -> None:
    def answers(name: str, time: int) -> Outcome:
        return Misconfigured("http_403") if name == "b" and fake.now < 5_000.0 else Delivered()

    fake = FakeDestination(answers)
    assert await attempts_with_limit(fake, None).deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN) == [Delivered()] * 3
    assert fake.now >= 5_000.0
    fake.now = 0.0
    first, second, third = await attempts_with_limit(fake, 60.0).deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN)
    assert first == third == Delivered()
    assert isinstance(second, Rejected) and second.reason == "gave_up"
    assert "http_403" in second.message and "give_up_misconfigured_after" in second.message
    assert 60.0 <= fake.now < 500.0


async def test_refusal_by_a_proxy_makes_no_dead_letter() -> None:
    """A proxy that refuses the connection has not forwarded the hit."""
    refusal = Misconfigured("the proxy answers 407", is_answer=False)
    fake = FakeDestination(lambda name, time: refusal if fake.now < 5_000.0 else Delivered())
    assert await attempts_with_limit(fake, 60.0).deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN) == [Delivered()] * 3
    assert fake.now >= 5_000.0


async def test_hits_behind_a_given_up_hit_are_delivered() -> None:
    fake = FakeDestination(lambda name, time: Misconfigured("http_403") if name == "b" else Delivered())
    attempts = attempts_with_limit(fake, 60.0)
    (outcome,) = await attempts.deliver(["b"], [[[0]]], OPEN)
    assert isinstance(outcome, Rejected) and outcome.reason == "gave_up"
    # They have waited just as long on the topic, behind the first batch.
    assert await attempts.deliver(list("cd"), [[[0], [1]]], OPEN, lambda position: 3_600.0) == [Delivered()] * 2


async def test_failure_of_another_kind_restarts_the_give_up_time() -> None:
    fake = FakeDestination(lambda name, time: Retry("down") if fake.now < 9.0 else Misconfigured("http_401"))
    (outcome,) = await attempts_with_limit(fake, 100.0).deliver(["a"], [[[0]]], OPEN)
    assert isinstance(outcome, Rejected) and "http_401" in outcome.message
    assert fake.now >= 109.0


async def test_each_hit_is_given_up_after_its_own_wait_in_a_long_outage() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_503"))
    attempts = fake.attempts(give_up_after=100.0)
    appended = {"a": 0.0, "b": 10.0, "c": 90.0}
    for name, at in appended.items():
        (outcome,) = await attempts.deliver([name], [[[0]]], OPEN, lambda _, at=at: fake.now - at)  # type: ignore[misc]
        assert isinstance(outcome, Rejected) and outcome.reason == "gave_up"
        assert 100.0 <= fake.now - at < 500.0
    assert fake.now < 600.0


async def test_short_outage_costs_no_hit_of_a_backlog() -> None:
    fake = FakeDestination(lambda name, time: Retry("down") if time < 4 else Delivered())
    outcomes = await fake.attempts(give_up_after=100.0).deliver(["a"], [[[0]]], OPEN, lambda _: 1e6)
    assert outcomes == [Delivered()]


async def test_next_batch_starts_with_a_probe_while_the_destination_is_down() -> None:
    fake = FakeDestination(lambda name, time: Retry("down"))
    attempts = fake.attempts(give_up_after=10.0)
    await attempts.deliver(["a"], [[[0]]], OPEN)
    fake.sent.clear()
    fake.answers = lambda name, time: Retry("down") if len(fake.sent) == 1 else Delivered()
    assert await attempts.deliver(list("bcd"), [[[0]], [[1]], [[2]]], OPEN, lambda _: 0.0) == [Delivered()] * 3
    assert fake.sent[:2] == ["b", "c"] and len(fake.sent) == 4


async def test_overdue_hits_are_given_up_without_a_request_until_the_next_probe() -> None:
    fake = FakeDestination(lambda name, time: Retry("down"))
    attempts = fake.attempts(give_up_after=10.0)
    await attempts.deliver(["a"], [[[0]]], OPEN)
    fake.sent.clear()
    outcomes = await attempts.deliver(list("bcd"), [[[0]], [[1]], [[2]]], OPEN)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [True] * 3
    assert fake.sent == []


async def test_overdue_backlog_is_sent_once_the_next_probe_is_due() -> None:
    fake = FakeDestination(lambda name, time: Retry("down"))
    attempts = fake.attempts(give_up_after=10.0)
    await attempts.deliver(["a"], [[[0]]], OPEN)
    fake.now += 1000.0
    fake.answers = lambda name, time: Delivered()
    assert await attempts.deliver(list("bcd"), [[[0]], [[1]], [[2]]], OPEN) == [Delivered()] * 3


async def test_probe_sends_one_request_and_its_success_resumes_all_lanes() -> None:
    fake = FakeDestination(lambda name, time: Retry("down", 5.0) if len(fake.sent) == 1 else Delivered())
    await fake.attempts().deliver(list("abxy"), [[[0], [1]], [[2], [3]]], OPEN)
    assert fake.sent == ["a", "a", "x", "y", "b"]


async def test_hits_beside_a_rejected_one_are_sent_again_at_once() -> None:
    def answers(name: str, time: int) -> Any:
        if "b" in name:
            return [Rejected("bad", "b") if one == "b" else Retry("with_b", 0.0) for one in name]
        return Retry("down", 0.0) if time == 1 and name == "d" else Delivered()

    fake = FakeDestination(answers)
    assert await fake.deliver("abc", OPEN, size=3) == [Delivered(), Rejected("bad", "b"), Delivered()]
    assert fake.sent == ["abc", "ac"] and fake.now == 0.0
    assert await fake.deliver("d", OPEN) == [Delivered()] and fake.now > 0.0


async def test_hit_that_becomes_too_old_while_waiting_is_not_sent() -> None:
    fake = FakeDestination(lambda name, time: Retry("down", 60.0) if time < 3 else Delivered())
    young_until = {"a": 100.0, "b": 1e9, "c": -1.0}
    too_old = Rejected("too_old", "late")
    attempts = Attempts(
        "c",
        fake.send,
        4,
        1e9,
        lambda: fake.now,
        fake.sleep,
        lambda: 1.0,
        reject=lambda name: too_old if fake.now > young_until[name] else None,
    )
    outcomes = await attempts.deliver(list("abc"), [[[0, 1], [2]]], OPEN)
    assert outcomes == [too_old, Delivered(), too_old]
    assert fake.sent == ["ab", "ab", "b", "b", "b"]


async def test_stale_batch_sends_nothing_more_of_its_lane() -> None:
    fake = FakeDestination(lambda name, time: Delivered())

    guard = stale_when(lambda: fake.sent)
    assert await fake.attempts().deliver(list("abc"), [[[0], [1], [2]]], guard) == [Delivered(), None, None]
    assert fake.sent == ["a"]


async def test_all_lanes_of_a_stale_batch_end_without_a_traceback() -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    fake = FakeDestination(lambda name, time: Delivered())
    lanes = [[[0], [3]], [[1], [4]], [[2], [5]]]
    assert await fake.attempts().deliver(list("abcxyz"), lanes, stale_when(lambda: fake.sent)) == [
        Delivered(),
        *[None] * 5,
    ]
    gc.collect()  # asyncio reports an unretrieved error when its task is freed
    await asyncio.sleep(0)
    assert errors == []


async def test_request_waiting_for_the_rate_is_not_sent_after_a_failure_or_revocation() -> None:
    fake = FakeDestination(lambda name, time: Delivered())
    times: list[float] = []

    async def send(names: Sequence[str]) -> Outcome:
        times.append(fake.now)
        await asyncio.sleep(0)  # the other requests queue up
        return Retry("down", 1000.0) if len(times) == 1 else Delivered()

    async def sleep(seconds: float) -> None:
        fake.now += seconds
        await asyncio.sleep(0)

    attempts = Attempts("c", send, 4, 3600.0, lambda: fake.now, sleep, lambda: 1.0, 0.01)
    await attempts.deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN)
    assert times[0] == 0.0 and len(times) == 4 and min(times[1:]) >= 1000.0
    revoked_at = fake.now + 5.0

    guard = stale_when(lambda: fake.now > revoked_at)
    outcomes = await fake.attempts(per_second=0.01).deliver(list("abc"), [[[0]], [[1]], [[2]]], guard)
    assert outcomes.count(None) == 2
    assert fake.now < revoked_at + 1.0


async def test_always_failing_hit_does_not_delay_others_of_its_batch() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_500") if name == "a" else Delivered())
    outcomes = await fake.deliver("abcd", OPEN, give_up_after=60.0)
    assert isinstance(outcomes[0], Rejected) and outcomes[1:] == [Delivered()] * 3
    assert {name: fake.sent.count(name) for name in "bcd"} == {"b": 1, "c": 1, "d": 1}


async def test_misconfigured_time_does_not_count_towards_giving_up() -> None:
    answers = iter([*[Misconfigured("401")] * 30, Retry("down"), Delivered()])
    fake = FakeDestination(lambda name, time: next(answers))
    assert await fake.deliver("a", OPEN, give_up_after=100.0) == [Delivered()]


async def test_hits_of_one_lane_keep_their_order_around_a_failure() -> None:
    fake = FakeDestination(lambda name, time: Retry("down") if name == "b" and time == 1 else Delivered())
    outcomes = await fake.attempts().deliver(list("abcx"), [[[0], [1], [2]], [[3]]], OPEN)
    assert outcomes == [Delivered()] * 4
    assert [name for name in fake.sent if name != "x"] == ["a", "b", "b", "c"]


async def test_ten_percent_rejected_hits_cost_no_more_than_single_requests() -> None:
    names = "".join("x" if number % 10 == 3 else "g" for number in range(100))
    fake = FakeDestination(lambda names, time: Rejected("http_400", "no") if "x" in names else Delivered())
    outcomes = await fake.deliver(names, OPEN, size=100)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [name == "x" for name in names]
    assert len(fake.sent) <= 100


def events(count: int, group: str | None = None) -> list[Event]:
    return [Event(f"hit-{number}", b"{}", group) for number in range(count)]


def test_events_of_one_identity_share_a_lane_in_order_and_lanes_are_balanced() -> None:
    keys = [f"user-{number % 40}" for number in range(400)]
    lanes, _ = lanes_of(events(400), keys, Limits(events=1), 8)
    assert len(lanes) == 8 and {len(lane) for lane in lanes} == {50}
    for lane in lanes:
        assert [position for chunk in lane for position in chunk] == sorted(p for chunk in lane for p in chunk)
    lane_of = {keys[p]: {n for n, lane in enumerate(lanes) for c in lane if keys[c[0]] == keys[p]} for p in range(40)}
    assert all(len(found) == 1 for found in lane_of.values())


def test_few_events_share_one_request_and_many_fill_all_requests() -> None:
    lanes, _ = lanes_of(events(50), range(50), Limits(events=100), 32)
    assert [len(chunk) for lane in lanes for chunk in lane] == [50]
    lanes, _ = lanes_of(events(3200), range(3200), Limits(events=100), 32)
    assert [len(chunk) for lane in lanes for chunk in lane] == [100] * 32


def test_identity_keeps_its_order_across_groups() -> None:
    mixed = [Event("1", b"{}", "g"), Event("2", b"{}", "h"), Event("3", b"{}", "g")]
    lanes, _ = lanes_of(mixed, ["u", "u", "u"], Limits(events=10), 4)
    assert lanes == [[[0], [1], [2]]]


async def test_rejected_hit_does_not_stop_its_batch() -> None:
    fake = FakeDestination(lambda name, time: Rejected("http_400", "no") if name == "a" else Delivered())
    assert await fake.deliver("ab", OPEN) == [Rejected("http_400", "no"), Delivered()]


async def test_rejected_hit_of_a_request_is_found_and_others_are_delivered() -> None:
    fake = FakeDestination(lambda names, time: Rejected("http_400", "no") if "x" in names else Delivered())
    outcomes = await fake.deliver("abcdxefg", OPEN, size=8)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [name == "x" for name in "abcdxefg"]
    assert len(fake.sent) <= 7  # 1 + 2 * log2(8)


async def test_failure_after_a_rejection_loses_no_hit() -> None:
    def answers(names: str, time: int) -> Outcome:
        return Rejected("http_400", "no") if "x" in names else Retry("down") if time < 3 else Delivered()

    outcomes = await FakeDestination(answers).deliver("axbcdxef", OPEN, size=4)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [name == "x" for name in "axbcdxef"]


async def test_verdict_per_event_settles_each_event() -> None:
    asked: list[str] = []

    async def send(names: Sequence[str]) -> list[Outcome]:
        asked.append("".join(names))
        retried: Outcome = Retry("busy") if len(asked) == 1 else Delivered()
        return [retried if name == "r" else Rejected("bad", "no") if name == "x" else Delivered() for name in names]

    fake = FakeDestination(lambda name, time: Delivered())
    attempts = Attempts("c", send, 4, 60.0, lambda: fake.now, fake.sleep, lambda: 1.0)
    outcomes = await attempts.deliver(list("arxb"), [[[0, 1, 2, 3]]], OPEN)
    assert outcomes == [Delivered(), Delivered(), Rejected("bad", "no"), Delivered()]
    assert asked == ["arxb", "r"]


async def test_rate_is_kept() -> None:
    fake = FakeDestination(lambda name, time: Delivered())
    await fake.attempts(per_second=2.0).deliver(list("abcdefghij"), [[[n]] for n in range(10)], OPEN)
    assert fake.now >= 4.5


async def test_misconfigured_connection_never_gives_up_by_default() -> None:
    fake = FakeDestination(lambda name, time: Misconfigured("401") if time < 30 else Delivered())
    assert await fake.deliver("a", OPEN, give_up_after=5.0) == [Delivered()]
    assert fake.now > 1000


async def test_stale_batch_is_dropped_while_it_waits() -> None:
    fake = FakeDestination(lambda name, time: Retry("down"))

    assert await fake.deliver("a", stale_when(lambda: fake.now > 5)) == [None]


def test_backoff_grows_to_five_minutes_with_full_jitter_and_respects_retry_after() -> None:
    assert [backoff_seconds(n, None, 1.0) for n in (0, 1, 2, 20)] == [1, 2, 4, 300]
    assert backoff_seconds(5, None, 0.0) == 0
    assert backoff_seconds(0, 42.0, 0.5) == 42
    assert backoff_seconds(0, 1800.0, 0.5) == 1800
    assert backoff_seconds(20, None, 1.0, longest=10.0) == 10


def test_retry_after_can_be_a_date() -> None:
    assert retry_after_seconds(" 17 ", 0.0) == "17"
    assert retry_after_seconds("Wed, 25 Nov 2026 12:00:30 GMT", 1_795_608_000.0) == "30"
    assert retry_after_seconds("Wed, 25 Nov 2026 11:00:00 GMT", 1_795_608_000.0) == "0"
    assert retry_after_seconds("soon", 0.0) == retry_after_seconds("-5", 0.0) == ""


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, Delivered),
        (204, Delivered),
        (302, Misconfigured),
        (308, Misconfigured),
        (400, Rejected),
        (401, Misconfigured),
        (403, Misconfigured),
        (408, Retry),
        (410, Misconfigured),
        (422, Rejected),
        (425, Retry),
        (429, Retry),
        (500, Retry),
        (503, Retry),
    ],
)
def test_outcome_of_each_status(status: int, kind: type) -> None:
    assert isinstance(judge(HttpResponse(status)), kind)


def test_retry_after_is_read() -> None:
    assert judge(HttpResponse(429, {"retry-after": "17"})) == Retry("http_429", 17.0)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "0.0.0.0"])
def test_private_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://localhost:1/", "http://[::1]:1/"])
async def test_request_to_a_private_address_is_not_sent(url: str) -> None:
    sink = HttpSink(1)
    assert isinstance(await sink.send(HttpRequest("POST", url, b"")), Misconfigured)
    await sink.close()


async def test_unreachable_address_is_retried() -> None:
    sink = HttpSink(1, allow_private=True)
    assert isinstance(await sink.send(HttpRequest("POST", "http://127.0.0.1:1/", b"")), Retry)
    await sink.close()
