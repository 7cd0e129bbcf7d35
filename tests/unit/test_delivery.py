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
    """Answers by the request's body; the clock moves only by sleeping."""

    def __init__(self, answers: Callable[[str, int], Outcome]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.now = 0.0

    async def send(self, names: Sequence[str]) -> Outcome:
        name = "".join(names)
        self.asked.append(name)
        return self.answers(name, self.asked.count(name))

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def attempts(self, give_up_after: float = 3600.0, per_second: float | None = None) -> Attempts[str]:
        return Attempts("c", self.send, 4, give_up_after, lambda: self.now, self.sleep, lambda: 1.0, per_second)

    async def deliver(
        self, names: str, guard: FakeGuard, *, size: int = 1, give_up_after: float = 3600.0
    ) -> list[Outcome | None]:
        lanes = [[list(range(start, min(start + size, len(names))))] for start in range(0, len(names), size)]
        return await self.attempts(give_up_after).deliver(list(names), lanes, guard)


async def test_a_failing_hit_is_tried_again_and_the_others_are_not() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_500") if name == "b" and time < 3 else Delivered())
    assert await fake.deliver("abc", OPEN) == [Delivered()] * 3
    assert fake.asked.count("a") == fake.asked.count("c") == 1
    assert fake.asked.count("b") == 3


async def test_what_the_sink_raises_is_tried_again_and_ends_nothing() -> None:
    def answers(name: str, time: int) -> Outcome:
        if name == "b" and time < 5:
            raise ValueError("no row of three")
        return Delivered()

    fake = FakeDestination(answers)
    assert await fake.deliver("abc", OPEN) == [Delivered()] * 3
    assert fake.asked.count("b") == 5 and fake.now > 0.0


async def test_a_connection_that_was_made_anew_does_not_wait_for_what_its_former_life_said() -> None:
    WAITING.begin("c", Waiting(False, "Session is closed", 1.0))
    fake = FakeDestination(lambda name, time: Delivered())
    await fake.deliver("a", OPEN)
    assert "c" not in WAITING.connections


async def test_a_connection_that_has_left_is_not_said_to_wait() -> None:
    WAITING.deregister("c")
    fake = FakeDestination(lambda name, time: Retry("Session is closed") if time < 5 else Delivered())
    seen: list[bool] = []
    await fake.deliver("a", FakeGuard(lambda: seen.append("c" in WAITING.connections)))
    WAITING.register("c")
    assert len(seen) > 5 and not any(seen)


async def test_after_three_failures_in_a_row_one_probe_goes_alone() -> None:
    fake = FakeDestination(lambda name, time: Retry("down") if len(fake.asked) <= 6 else Delivered())
    await fake.attempts().deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN)
    # In turns: what one hit can't pass may be no obstacle for the others.
    assert fake.asked == list("aaaabcabc")


async def test_a_failure_alone_holds_up_its_own_lane_only() -> None:
    sent: list[tuple[str, float]] = []
    fake = FakeDestination(lambda name, time: Delivered())

    async def send(names: Sequence[str]) -> Outcome:
        sent.append((names[0], fake.now))
        return Retry("http_500") if len(sent) == 2 else Delivered()

    async def sleep(seconds: float) -> None:
        until = fake.now + seconds
        for _ in range(20):  # the others have all the time
            await asyncio.sleep(0)
        fake.now = max(fake.now, until)

    attempts = Attempts("c", send, 4, 3600.0, lambda: fake.now, sleep, lambda: 1.0)
    await attempts.deliver(list("abcxyz"), [[[0], [1], [2]], [[3], [4], [5]]], OPEN)
    assert sent == [*((name, 0.0) for name in "abxyz"), ("b", 1.0), ("c", 1.0)]


async def test_what_was_sent_before_the_pause_neither_ends_it_nor_makes_it_longer() -> None:
    fake = FakeDestination(lambda name, time: Delivered())
    answers = iter([Retry("busy", 30.0), Delivered(), Retry("http_500"), Delivered(), Delivered()])
    sent: list[float] = []

    async def send(names: Sequence[str]) -> Outcome:
        sent.append(fake.now)
        answer = next(answers)
        await asyncio.sleep(0)  # all three are on their way
        return answer

    attempts = Attempts("c", send, 4, 3600.0, lambda: fake.now, fake.sleep, lambda: 1.0)
    assert await attempts.deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN) == [Delivered()] * 3
    assert sent == [0.0, 0.0, 0.0, 30.0, 30.0]


async def test_it_gives_up_in_time_with_the_last_reason() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_503"))
    outcomes = await fake.deliver("a", OPEN, give_up_after=10.0)
    assert isinstance(outcomes[0], Rejected)
    assert outcomes[0].reason == "gave_up" and "http_503" in outcomes[0].message
    assert fake.now >= 10


def misconfigurable(fake: FakeDestination, limit: float | None) -> Attempts[str]:
    return Attempts(
        *("c", fake.send, 4, 10.0, lambda: fake.now, fake.sleep, lambda: 1.0),
        give_up_misconfigured_after_seconds=limit,
    )


async def test_a_hit_that_alone_is_forbidden_waits_for_the_operator_unless_there_is_a_limit() -> None:
    def answers(name: str, time: int) -> Outcome:
        return Misconfigured("http_403") if name == "b" and fake.now < 5_000.0 else Delivered()

    fake = FakeDestination(answers)
    assert await misconfigurable(fake, None).deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN) == [Delivered()] * 3
    assert fake.now >= 5_000.0
    fake.now = 0.0
    first, second, third = await misconfigurable(fake, 60.0).deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN)
    assert first == third == Delivered()
    assert isinstance(second, Rejected) and second.reason == "gave_up"
    assert "http_403" in second.message and "give_up_misconfigured_after" in second.message
    assert 60.0 <= fake.now < 500.0


async def test_a_refusal_that_no_destination_has_given_makes_no_dead_letter() -> None:
    """A proxy that refuses to connect has not seen the hit."""
    refusal = Misconfigured("the proxy answers 407", is_answer=False)
    fake = FakeDestination(lambda name, time: refusal if fake.now < 5_000.0 else Delivered())
    assert await misconfigurable(fake, 60.0).deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN) == [Delivered()] * 3
    assert fake.now >= 5_000.0


async def test_a_hit_that_alone_is_forbidden_takes_none_of_those_behind_it_along() -> None:
    fake = FakeDestination(lambda name, time: Misconfigured("http_403") if name == "b" else Delivered())
    attempts = misconfigurable(fake, 60.0)
    (outcome,) = await attempts.deliver(["b"], [[[0]]], OPEN)
    assert isinstance(outcome, Rejected) and outcome.reason == "gave_up"
    # They have waited as long, in the topic: the connection had other work.
    assert await attempts.deliver(list("cd"), [[[0], [1]]], OPEN, lambda position: 3_600.0) == [Delivered()] * 2


async def test_failures_of_another_kind_begin_a_time_of_their_own() -> None:
    fake = FakeDestination(lambda name, time: Retry("down") if fake.now < 9.0 else Misconfigured("http_401"))
    (outcome,) = await misconfigurable(fake, 100.0).deliver(["a"], [[[0]]], OPEN)
    assert isinstance(outcome, Rejected) and "http_401" in outcome.message
    assert fake.now >= 109.0


async def test_after_a_long_outage_each_hit_waits_its_own_time_and_no_longer() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_503"))
    attempts = fake.attempts(give_up_after=100.0)
    appended = {"a": 0.0, "b": 10.0, "c": 90.0}
    for name, at in appended.items():
        (outcome,) = await attempts.deliver([name], [[[0]]], OPEN, lambda _, at=at: fake.now - at)  # type: ignore[misc]
        assert isinstance(outcome, Rejected) and outcome.reason == "gave_up"
        assert 100.0 <= fake.now - at < 500.0
    assert fake.now < 600.0


async def test_a_backlog_that_meets_a_short_outage_loses_nothing() -> None:
    fake = FakeDestination(lambda name, time: Retry("down") if time < 4 else Delivered())
    outcomes = await fake.attempts(give_up_after=100.0).deliver(["a"], [[[0]]], OPEN, lambda _: 1e6)
    assert outcomes == [Delivered()]


async def test_the_next_batch_begins_with_a_probe_while_the_destination_is_down() -> None:
    fake = FakeDestination(lambda name, time: Retry("down"))
    attempts = fake.attempts(give_up_after=10.0)
    await attempts.deliver(["a"], [[[0]]], OPEN)
    fake.asked.clear()
    fake.answers = lambda name, time: Retry("down") if len(fake.asked) == 1 else Delivered()
    assert await attempts.deliver(list("bcd"), [[[0]], [[1]], [[2]]], OPEN, lambda _: 0.0) == [Delivered()] * 3
    assert fake.asked[:2] == ["b", "c"] and len(fake.asked) == 4


async def test_what_is_late_is_given_up_without_a_request_until_the_next_probe() -> None:
    fake = FakeDestination(lambda name, time: Retry("down"))
    attempts = fake.attempts(give_up_after=10.0)
    await attempts.deliver(["a"], [[[0]]], OPEN)
    fake.asked.clear()
    outcomes = await attempts.deliver(list("bcd"), [[[0]], [[1]], [[2]]], OPEN)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [True] * 3
    assert fake.asked == []


async def test_a_late_backlog_is_tried_again_as_soon_as_the_next_probe_is_due() -> None:
    fake = FakeDestination(lambda name, time: Retry("down"))
    attempts = fake.attempts(give_up_after=10.0)
    await attempts.deliver(["a"], [[[0]]], OPEN)
    fake.now += 1000.0
    fake.answers = lambda name, time: Delivered()
    assert await attempts.deliver(list("bcd"), [[[0]], [[1]], [[2]]], OPEN) == [Delivered()] * 3


async def test_the_probe_takes_one_request_of_a_lane_and_its_success_lets_all_go() -> None:
    fake = FakeDestination(lambda name, time: Retry("down", 5.0) if len(fake.asked) == 1 else Delivered())
    await fake.attempts().deliver(list("abxy"), [[[0], [1]], [[2], [3]]], OPEN)
    assert fake.asked == ["a", "a", "x", "y", "b"]


async def test_what_shared_a_request_with_a_refused_one_goes_again_at_once_and_a_destination_that_is_down_waits() -> (
    None
):
    def answers(name: str, time: int) -> Any:
        if "b" in name:
            return [Rejected("bad", "b") if one == "b" else Retry("with_b", 0.0) for one in name]
        return Retry("down", 0.0) if time == 1 and name == "d" else Delivered()

    fake = FakeDestination(answers)
    assert await fake.deliver("abc", OPEN, size=3) == [Delivered(), Rejected("bad", "b"), Delivered()]
    assert fake.asked == ["abc", "ac"] and fake.now == 0.0
    assert await fake.deliver("d", OPEN) == [Delivered()] and fake.now > 0.0


async def test_what_becomes_too_old_while_it_waits_is_not_sent_and_the_others_are() -> None:
    fake = FakeDestination(lambda name, time: Retry("down", 60.0) if time < 3 else Delivered())
    young_until = {"a": 100.0, "b": 1e9, "c": -1.0}
    too_late = Rejected("too_old", "late")
    attempts = Attempts(
        "c",
        fake.send,
        4,
        1e9,
        lambda: fake.now,
        fake.sleep,
        lambda: 1.0,
        refused=lambda name: too_late if fake.now > young_until[name] else None,
    )
    outcomes = await attempts.deliver(list("abc"), [[[0, 1], [2]]], OPEN)
    assert outcomes == [too_late, Delivered(), too_late]
    assert fake.asked == ["ab", "ab", "b", "b", "b"]


async def test_a_revoked_batch_sends_nothing_more_of_its_lane() -> None:
    fake = FakeDestination(lambda name, time: Delivered())

    guard = stale_when(lambda: fake.asked)
    assert await fake.attempts().deliver(list("abc"), [[[0], [1], [2]]], guard) == [Delivered(), None, None]
    assert fake.asked == ["a"]


async def test_all_lanes_of_a_revoked_batch_end_without_a_traceback() -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
    fake = FakeDestination(lambda name, time: Delivered())
    lanes = [[[0], [3]], [[1], [4]], [[2], [5]]]
    assert await fake.attempts().deliver(list("abcxyz"), lanes, stale_when(lambda: fake.asked)) == [
        Delivered(),
        *[None] * 5,
    ]
    gc.collect()  # asyncio reports an error that nobody has retrieved when its task is freed
    await asyncio.sleep(0)
    assert said == []


async def test_what_waits_for_its_turn_of_the_rate_does_not_go_after_a_failure_or_a_revocation() -> None:
    fake = FakeDestination(lambda name, time: Delivered())
    times: list[float] = []

    async def send(names: Sequence[str]) -> Outcome:
        times.append(fake.now)
        await asyncio.sleep(0)  # the others get in line
        return Retry("down", 1000.0) if len(times) == 1 else Delivered()

    async def sleep(seconds: float) -> None:
        fake.now += seconds
        await asyncio.sleep(0)

    attempts = Attempts("c", send, 4, 3600.0, lambda: fake.now, sleep, lambda: 1.0, 0.01)
    await attempts.deliver(list("abc"), [[[0]], [[1]], [[2]]], OPEN)
    assert times[0] == 0.0 and len(times) == 4 and min(times[1:]) >= 1000.0
    gone_at = fake.now + 5.0

    guard = stale_when(lambda: fake.now > gone_at)
    outcomes = await fake.attempts(per_second=0.01).deliver(list("abc"), [[[0]], [[1]], [[2]]], guard)
    assert outcomes.count(None) == 2
    assert fake.now < gone_at + 1.0


async def test_one_hit_that_always_fails_does_not_hold_up_the_others_of_its_batch() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_500") if name == "a" else Delivered())
    outcomes = await fake.deliver("abcd", OPEN, give_up_after=60.0)
    assert isinstance(outcomes[0], Rejected) and outcomes[1:] == [Delivered()] * 3
    assert {name: fake.asked.count(name) for name in "bcd"} == {"b": 1, "c": 1, "d": 1}


async def test_time_spent_misconfigured_kills_no_hit() -> None:
    answers = iter([*[Misconfigured("401")] * 30, Retry("down"), Delivered()])
    fake = FakeDestination(lambda name, time: next(answers))
    assert await fake.deliver("a", OPEN, give_up_after=100.0) == [Delivered()]


async def test_hits_of_one_lane_go_one_after_the_other_also_around_a_failure() -> None:
    fake = FakeDestination(lambda name, time: Retry("down") if name == "b" and time == 1 else Delivered())
    outcomes = await fake.attempts().deliver(list("abcx"), [[[0], [1], [2]], [[3]]], OPEN)
    assert outcomes == [Delivered()] * 4
    assert [name for name in fake.asked if name != "x"] == ["a", "b", "b", "c"]


async def test_a_tenth_of_poison_costs_no_more_than_single_requests_would() -> None:
    names = "".join("x" if number % 10 == 3 else "g" for number in range(100))
    fake = FakeDestination(lambda names, time: Rejected("http_400", "no") if "x" in names else Delivered())
    outcomes = await fake.deliver(names, OPEN, size=100)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [name == "x" for name in names]
    assert len(fake.asked) <= 100


def events(count: int, group: str | None = None) -> list[Event]:
    return [Event(f"hit-{number}", b"{}", group) for number in range(count)]


def test_events_of_one_identity_share_a_lane_in_their_order_and_the_lanes_are_balanced() -> None:
    keys = [f"user-{number % 40}" for number in range(400)]
    lanes, _ = lanes_of(events(400), keys, Limits(events=1), 8)
    assert len(lanes) == 8 and {len(lane) for lane in lanes} == {50}
    for lane in lanes:
        assert [position for chunk in lane for position in chunk] == sorted(p for chunk in lane for p in chunk)
    lane_of = {keys[p]: {n for n, lane in enumerate(lanes) for c in lane if keys[c[0]] == keys[p]} for p in range(40)}
    assert all(len(found) == 1 for found in lane_of.values())


def test_few_events_share_one_request_and_many_fill_theirs() -> None:
    lanes, _ = lanes_of(events(50), range(50), Limits(events=100), 32)
    assert [len(chunk) for lane in lanes for chunk in lane] == [50]
    lanes, _ = lanes_of(events(3200), range(3200), Limits(events=100), 32)
    assert [len(chunk) for lane in lanes for chunk in lane] == [100] * 32


def test_an_identity_keeps_its_order_also_across_groups() -> None:
    mixed = [Event("1", b"{}", "g"), Event("2", b"{}", "h"), Event("3", b"{}", "g")]
    lanes, _ = lanes_of(mixed, ["u", "u", "u"], Limits(events=10), 4)
    assert lanes == [[[0], [1], [2]]]


async def test_a_rejected_hit_does_not_stop_the_batch() -> None:
    fake = FakeDestination(lambda name, time: Rejected("http_400", "no") if name == "a" else Delivered())
    assert await fake.deliver("ab", OPEN) == [Rejected("http_400", "no"), Delivered()]


async def test_a_poison_hit_in_a_batch_is_found_and_the_others_arrive() -> None:
    fake = FakeDestination(lambda names, time: Rejected("http_400", "no") if "x" in names else Delivered())
    outcomes = await fake.deliver("abcdxefg", OPEN, size=8)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [name == "x" for name in "abcdxefg"]
    assert len(fake.asked) <= 7  # 1 + 2 * log2(8)


async def test_a_batch_that_is_poison_and_then_down_loses_nothing() -> None:
    def answers(names: str, time: int) -> Outcome:
        return Rejected("http_400", "no") if "x" in names else Retry("down") if time < 3 else Delivered()

    outcomes = await FakeDestination(answers).deliver("axbcdxef", OPEN, size=4)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [name == "x" for name in "axbcdxef"]


async def test_answers_per_event_settle_each_by_itself() -> None:
    asked: list[str] = []

    async def send(names: Sequence[str]) -> list[Outcome]:
        asked.append("".join(names))
        late: Outcome = Retry("busy") if len(asked) == 1 else Delivered()
        return [late if name == "r" else Rejected("bad", "no") if name == "x" else Delivered() for name in names]

    fake = FakeDestination(lambda name, time: Delivered())
    attempts = Attempts("c", send, 4, 60.0, lambda: fake.now, fake.sleep, lambda: 1.0)
    outcomes = await attempts.deliver(list("arxb"), [[[0, 1, 2, 3]]], OPEN)
    assert outcomes == [Delivered(), Delivered(), Rejected("bad", "no"), Delivered()]
    assert asked == ["arxb", "r"]


async def test_the_rate_is_kept() -> None:
    fake = FakeDestination(lambda name, time: Delivered())
    await fake.attempts(per_second=2.0).deliver(list("abcdefghij"), [[[n]] for n in range(10)], OPEN)
    assert fake.now >= 4.5


async def test_a_misconfigured_connection_waits_and_never_gives_up() -> None:
    fake = FakeDestination(lambda name, time: Misconfigured("401") if time < 30 else Delivered())
    assert await fake.deliver("a", OPEN, give_up_after=5.0) == [Delivered()]
    assert fake.now > 1000


async def test_a_revoked_batch_is_dropped_in_the_middle_of_waiting() -> None:
    fake = FakeDestination(lambda name, time: Retry("down"))

    assert await fake.deliver("a", stale_when(lambda: fake.now > 5)) == [None]


def test_backoff_grows_to_five_minutes_with_full_jitter_and_heeds_retry_after() -> None:
    assert [backoff_seconds(n, None, 1.0) for n in (0, 1, 2, 20)] == [1, 2, 4, 300]
    assert backoff_seconds(5, None, 0.0) == 0
    assert backoff_seconds(0, 42.0, 0.5) == 42
    assert backoff_seconds(0, 1800.0, 0.5) == 1800
    assert backoff_seconds(20, None, 1.0, longest=10.0) == 10


def test_retry_after_may_be_a_date() -> None:
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
def test_a_status_has_its_outcome(status: int, kind: type) -> None:
    assert isinstance(judge(HttpResponse(status)), kind)


def test_retry_after_is_read() -> None:
    assert judge(HttpResponse(429, {"retry-after": "17"})) == Retry("http_429", 17.0)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "0.0.0.0"])
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://localhost:1/", "http://[::1]:1/"])
async def test_a_request_to_a_private_address_is_not_made(url: str) -> None:
    sink = HttpSink(1)
    assert isinstance(await sink.send(HttpRequest("POST", url, b"")), Misconfigured)
    await sink.close()


async def test_an_address_that_does_not_answer_is_tried_again() -> None:
    sink = HttpSink(1, allow_private=True)
    assert isinstance(await sink.send(HttpRequest("POST", "http://127.0.0.1:1/", b"")), Retry)
    await sink.close()
