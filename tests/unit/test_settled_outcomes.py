"""A batch that is given up: what is settled counts, nothing more is sent, and what comes back is not sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from pipeline.delivery.attempts import FINISH_SECONDS, Attempts
from pipeline.delivery.settled import SettledOutcomes, settled_first
from pipeline.destination import Delivered, Outcome, Rejected
from pipeline.errors import StaleBatch
from tests.guard import FakeGuard, stale_when

pytestmark = pytest.mark.anyio
_TP = TP("deliveries-c", 0)


def record(offset: int, value: bytes = b"v", at_ms: int = 1_000) -> Message:
    stamp = (TIMESTAMP_LOG_APPEND_TIME, at_ms)
    return Message(topic=_TP.topic, partition=0, offset=offset, key=b"k", value=value, timestamp=stamp)


class SlowDestination:
    """Answers when it is told to; time passes only by sleeping."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = asyncio.Event()
        self.now = 0.0

    async def send(self, names: Sequence[str]) -> Outcome:
        self.asked += names
        await self.answer.wait()
        return Delivered()

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if seconds >= FINISH_SECONDS:  # the limit for requests in flight: real time must not matter
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    def attempts(self) -> Attempts[str]:
        return Attempts("c", self.send, 2, 3600.0, lambda: self.now, self.sleep, lambda: 1.0)


async def test_requests_in_flight_count_when_the_partitions_are_given_up() -> None:
    fake, gone = SlowDestination(), False
    delivering = asyncio.ensure_future(
        fake.attempts().deliver(list("abcd"), [[[0], [2]], [[1], [3]]], stale_when(lambda: gone))
    )
    while len(fake.asked) < 2:
        await asyncio.sleep(0)
    gone = True
    fake.answer.set()
    assert await asyncio.wait_for(delivering, 10) == [Delivered(), Delivered(), None, None]
    assert sorted(fake.asked) == ["a", "b"]


class TwoLanes:
    """`a` is answered once `b` is in flight, and then the batch is stale; `b` is answered by `slow`."""

    def __init__(self) -> None:
        self.gone = False
        self.slow = asyncio.Event()
        self._in_flight = asyncio.Event()

    async def send(self, names: Sequence[str]) -> Outcome:
        if names == ["b"]:
            self._in_flight.set()
            await self.slow.wait()
        else:
            await self._in_flight.wait()
            self.gone = True
        return Delivered()

    async def deliver(self, sleep: Callable[[float], Awaitable[None]]) -> list[Outcome | None]:
        attempts = Attempts("c", self.send, 8, 3600.0, lambda: 0.0, sleep, lambda: 1.0)
        guard = stale_when(lambda: self.gone)
        return await asyncio.wait_for(attempts.deliver(list("abc"), [[[0], [2]], [[1]]], guard), 10)


async def test_the_lane_that_notices_first_waits_for_the_answers_of_the_others() -> None:
    lanes = TwoLanes()

    async def sleep(seconds: float) -> None:
        lanes.slow.set()
        await asyncio.Event().wait()

    assert await lanes.deliver(sleep) == [Delivered(), Delivered(), None]


async def test_slow_requests_alone_do_not_keep_a_batch_from_noticing_that_it_is_given_up() -> None:
    """All lanes are in their second request, which hangs; what was answered before must count."""
    hanging: list[str] = []
    waited: list[float] = []

    async def send(names: Sequence[str]) -> Outcome:
        if names[0] in "cd":
            hanging.extend(names)
            await asyncio.Event().wait()
        return Delivered()

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    attempts = Attempts("c", send, 8, 3600.0, lambda: 0.0, sleep, lambda: 1.0)
    guard = stale_when(lambda: len(hanging) == 2)
    delivering = attempts.deliver(list("abcd"), [[[0], [2]], [[1], [3]]], guard)
    assert await asyncio.wait_for(delivering, 10) == [Delivered(), Delivered(), None, None]
    assert waited == [FINISH_SECONDS]


async def test_a_request_that_never_ends_is_waited_for_within_bounds() -> None:
    lanes = TwoLanes()
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    assert await lanes.deliver(sleep) == [Delivered(), None, None]
    assert waited == [FINISH_SECONDS]


async def test_every_request_is_verified_before_it_goes() -> None:
    fake, guard = SlowDestination(), FakeGuard()
    fake.answer.set()
    await fake.attempts().deliver(list("abc"), [[[0], [1]], [[2]]], guard)
    assert guard.verified == len(fake.asked) == 3


async def test_nothing_is_sent_when_the_slot_cannot_be_verified() -> None:
    fake = SlowDestination()

    def lost() -> None:
        raise StaleBatch("another worker has the partitions")

    outcomes = await fake.attempts().deliver(list("ab"), [[[0]], [[1]]], FakeGuard(verify=lost))
    assert outcomes == [None, None] and fake.asked == []


async def test_what_is_settled_already_is_not_sent() -> None:
    fake = SlowDestination()
    fake.answer.set()
    assert await fake.attempts().deliver([Delivered(), "b"], [[[1]]], FakeGuard()) == [Delivered(), Delivered()]
    assert fake.asked == ["b"]


def test_an_outcome_comes_back_for_the_same_record_only() -> None:
    kept = SettledOutcomes(10)
    kept.keep(_TP, [record(5), record(6), record(7)], [Delivered(), None, Rejected("r", "m")])
    assert kept.recall(_TP, record(5)) == Delivered()
    assert kept.recall(_TP, record(6)) is None
    assert kept.recall(_TP, record(7)) == Rejected("r", "m")
    assert kept.recall(_TP, record(5, value=b"of a topic made anew")) is None
    assert kept.recall(_TP, record(5, at_ms=2_000)) is None
    assert kept.recall(TP(_TP.topic, 1), record(5)) is None


def test_outcomes_below_the_next_batch_are_forgotten() -> None:
    kept = SettledOutcomes(10)
    kept.keep(_TP, [record(5), record(6)], [Delivered(), Delivered()])
    kept.keep(_TP, [record(6)], [Delivered()])
    assert kept.recall(_TP, record(5)) is None and kept.recall(_TP, record(6)) == Delivered()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100), st.integers(1, 8)), max_size=60))
def test_memory_is_bounded_whatever_is_never_committed(batches: list[tuple[int, int, int]]) -> None:
    kept = SettledOutcomes(16)
    for partition, first, count in batches:
        records = [record(first + n) for n in range(count)]
        kept.keep(TP(_TP.topic, partition), records, [Delivered()] * count)
        assert len(kept) <= 16
        assert kept.recall(TP(_TP.topic, partition), records[-1]) == Delivered()


def test_only_the_outcomes_before_the_first_gap_may_be_committed() -> None:
    assert settled_first([Delivered(), Rejected("r", "m"), None, Delivered()]) == 2
    assert settled_first([None]) == 0 and settled_first([]) == 0 and settled_first([Delivered()]) == 1
