"""Attempts and outcomes (contract.md, section 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pipeline.codec.avro import Framing
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.delivery.attempts import Attempts, backoff_seconds
from pipeline.delivery.deliverers import RoutedHits
from pipeline.destination import (
    Delivered,
    HttpRequest,
    HttpResponse,
    Misconfigured,
    Outcome,
    Rejected,
    Retry,
    judge,
)
from pipeline.errors import StaleBatch
from pipeline.sinks.http import HttpSink, is_public

pytestmark = pytest.mark.anyio

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
        self, names: str, keep_on: Callable[[], None], *, size: int = 1, give_up_after: float = 3600.0
    ) -> list[Outcome]:
        chunks = [list(range(start, min(start + size, len(names)))) for start in range(0, len(names), size)]
        return await self.attempts(give_up_after).deliver(list(names), chunks, keep_on)


def go_on() -> None:
    pass


async def test_a_failing_hit_is_tried_again_and_the_others_are_not() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_500") if name == "b" and time < 3 else Delivered())
    assert await fake.deliver("abc", go_on) == [Delivered()] * 3
    assert fake.asked.count("a") == fake.asked.count("c") == 1
    assert fake.asked.count("b") == 3


async def test_after_a_failure_one_probe_goes_alone() -> None:
    fake = FakeDestination(lambda name, time: Retry("down") if len(fake.asked) <= 6 else Delivered())
    await fake.deliver("abc", go_on)
    assert fake.asked[3:7] == ["a", "a", "a", "a"]


async def test_it_gives_up_in_time_with_the_last_reason() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_503"))
    outcomes = await fake.deliver("a", go_on, give_up_after=10.0)
    assert isinstance(outcomes[0], Rejected)
    assert outcomes[0].reason == "gave_up" and "http_503" in outcomes[0].message
    assert fake.now >= 10


async def test_after_a_long_outage_each_hit_waits_its_own_time_and_no_longer() -> None:
    fake = FakeDestination(lambda name, time: Retry("http_503"))
    attempts = fake.attempts(give_up_after=100.0)
    appended = {"a": 0.0, "b": 10.0, "c": 90.0}
    for name, at in appended.items():
        (outcome,) = await attempts.deliver([name], [[0]], go_on, lambda _, at=at: fake.now - at)  # type: ignore[misc]
        assert isinstance(outcome, Rejected) and outcome.reason == "gave_up"
        assert 100.0 <= fake.now - at < 500.0
    assert fake.now < 600.0


async def test_a_backlog_that_meets_a_short_outage_loses_nothing() -> None:
    fake = FakeDestination(lambda name, time: Retry("down") if time < 4 else Delivered())
    outcomes = await fake.attempts(give_up_after=100.0).deliver(["a"], [[0]], go_on, lambda _: 1e6)
    assert outcomes == [Delivered()]


async def test_the_next_batch_begins_with_a_probe_while_the_destination_is_down() -> None:
    down = True
    fake = FakeDestination(lambda name, time: Retry("down") if down else Delivered())
    attempts = fake.attempts(give_up_after=10.0)
    await attempts.deliver(["a"], [[0]], go_on)
    fake.asked.clear()
    await attempts.deliver(list("bcd"), [[0], [1], [2]], go_on)
    assert fake.asked == ["b", "c", "d"]


async def test_a_rejected_hit_does_not_stop_the_batch() -> None:
    fake = FakeDestination(lambda name, time: Rejected("http_400", "no") if name == "a" else Delivered())
    assert await fake.deliver("ab", go_on) == [Rejected("http_400", "no"), Delivered()]


async def test_a_poison_hit_in_a_batch_is_found_and_the_others_go_on() -> None:
    fake = FakeDestination(lambda names, time: Rejected("http_400", "no") if "x" in names else Delivered())
    outcomes = await fake.deliver("abcdxefg", go_on, size=8)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [name == "x" for name in "abcdxefg"]
    assert len(fake.asked) <= 7  # 1 + 2 * log2(8)


async def test_a_batch_that_is_poison_and_then_down_loses_nothing() -> None:
    def answers(names: str, time: int) -> Outcome:
        return Rejected("http_400", "no") if "x" in names else Retry("down") if time < 3 else Delivered()

    outcomes = await FakeDestination(answers).deliver("axbcdxef", go_on, size=4)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [name == "x" for name in "axbcdxef"]


async def test_answers_per_event_settle_each_by_itself() -> None:
    asked: list[str] = []

    async def send(names: Sequence[str]) -> list[Outcome]:
        asked.append("".join(names))
        late: Outcome = Retry("busy") if len(asked) == 1 else Delivered()
        return [late if name == "r" else Rejected("bad", "no") if name == "x" else Delivered() for name in names]

    fake = FakeDestination(lambda name, time: Delivered())
    attempts = Attempts("c", send, 4, 60.0, lambda: fake.now, fake.sleep, lambda: 1.0)
    outcomes = await attempts.deliver(list("arxb"), [[0, 1, 2, 3]], go_on)
    assert outcomes == [Delivered(), Delivered(), Rejected("bad", "no"), Delivered()]
    assert asked == ["arxb", "r"]


async def test_the_rate_is_kept() -> None:
    fake = FakeDestination(lambda name, time: Delivered())
    await fake.attempts(per_second=2.0).deliver(list("abcdefghij"), [[n] for n in range(10)], go_on)
    assert fake.now >= 4.5


async def test_a_misconfigured_connection_waits_and_never_gives_up() -> None:
    fake = FakeDestination(lambda name, time: Misconfigured("401") if time < 30 else Delivered())
    assert await fake.deliver("a", go_on, give_up_after=5.0) == [Delivered()]
    assert fake.now > 1000


async def test_a_revoked_batch_is_dropped_in_the_middle_of_waiting() -> None:
    fake = FakeDestination(lambda name, time: Retry("down"))

    def keep_on() -> None:
        if fake.now > 5:
            raise StaleBatch("gone")

    with pytest.raises(StaleBatch):
        await fake.deliver("a", keep_on)


def test_backoff_grows_to_five_minutes_with_full_jitter_and_heeds_retry_after() -> None:
    assert [backoff_seconds(n, None, 1.0) for n in (0, 1, 2, 20)] == [1, 2, 4, 300]
    assert backoff_seconds(5, None, 0.0) == 0
    assert backoff_seconds(0, 42.0, 0.5) == 42


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, Delivered),
        (204, Delivered),
        (302, Rejected),
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
    assert isinstance(await sink.exchange(HttpRequest("POST", url, b"")), Misconfigured)
    await sink.close()


async def test_an_address_that_does_not_answer_is_tried_again() -> None:
    sink = HttpSink(1, allow_private=True)
    assert isinstance(await sink.exchange(HttpRequest("POST", "http://127.0.0.1:1/", b"")), Retry)
    await sink.close()
