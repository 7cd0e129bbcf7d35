"""A stale batch: its settled outcomes count, nothing more is sent, and settled records that are read again are not sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from pipeline.delivery.attempts import FINISH_SECONDS, Attempts
from pipeline.delivery.settled import SettledOutcomes, settled_count
from pipeline.destination import Delivered, Outcome, Rejected
from pipeline.errors import StaleBatch
from tests.guard import FakeGuard, stale_when

pytestmark = pytest.mark.anyio
_TP = TP("deliveries-c", 0)


def record(offset: int, value: bytes = b"v", at_ms: int = 1_000) -> Message:
    stamp = (TIMESTAMP_LOG_APPEND_TIME, at_ms)
    return Message(topic=_TP.topic, partition=0, offset=offset, key=b"k", value=value, timestamp=stamp)


class SlowDestination:
    """Responds once `answer` is set; the clock advances only by sleeping."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.answer = asyncio.Event()
        self.now = 0.0

    async def send(self, names: Sequence[str]) -> Outcome:
        self.sent += names
        await self.answer.wait()
        return Delivered()

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if seconds >= FINISH_SECONDS:  # the limit for requests in flight must not depend on real time
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    def attempts(self) -> Attempts[str]:
        return Attempts("c", self.send, 2, 3600.0, lambda: self.now, self.sleep, lambda: 1.0)


async def test_requests_in_flight_count_when_the_partitions_are_revoked() -> None:
    fake, is_stale = SlowDestination(), False
    delivering = asyncio.ensure_future(
        fake.attempts().deliver(list("abcd"), [[[0], [2]], [[1], [3]]], stale_when(lambda: is_stale))
    )
    while len(fake.sent) < 2:
        await asyncio.sleep(0)
    is_stale = True
    fake.answer.set()
    assert await asyncio.wait_for(delivering, 10) == [Delivered(), Delivered(), None, None]
    assert sorted(fake.sent) == ["a", "b"]


class TwoLanes:
    """Request `a` succeeds once `b` is in flight; then the batch is stale. Request `b` succeeds once `slow` is set."""

    def __init__(self) -> None:
        self.is_stale = False
        self.slow = asyncio.Event()
        self._in_flight = asyncio.Event()

    async def send(self, names: Sequence[str]) -> Outcome:
        if names == ["b"]:
            self._in_flight.set()
            await self.slow.wait()
        else:
            await self._in_flight.wait()
            self.is_stale = True
        return Delivered()

    async def deliver(self, sleep: Callable[[float], Awaitable[None]]) -> list[Outcome | None]:
        attempts = Attempts("c", self.send, 8, 3600.0, lambda: 0.0, sleep, lambda: 1.0)
        guard = stale_when(lambda: self.is_stale)
        return await asyncio.wait_for(attempts.deliver(list("abc"), [[[0], [2]], [[1]]], guard), 10)


async def test_stale_batch_waits_for_requests_of_other_lanes() -> None:
    lanes = TwoLanes()

    async def sleep(seconds: float) -> None:
        lanes.slow.set()
        await asyncio.Event().wait()

    assert await lanes.deliver(sleep) == [Delivered(), Delivered(), None]


async def test_stale_batch_is_detected_while_all_lanes_wait_for_slow_requests() -> None:
    """The second request of each lane hangs; the outcomes of the first requests must count."""
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


async def test_wait_for_a_hanging_request_is_bounded() -> None:
    lanes = TwoLanes()
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    assert await lanes.deliver(sleep) == [Delivered(), None, None]
    assert waited == [FINISH_SECONDS]


async def test_guard_is_verified_before_every_request() -> None:
    fake, guard = SlowDestination(), FakeGuard()
    fake.answer.set()
    await fake.attempts().deliver(list("abc"), [[[0], [1]], [[2]]], guard)
    assert guard.verified == len(fake.sent) == 3


async def test_nothing_is_sent_when_the_slot_cannot_be_verified() -> None:
    fake = SlowDestination()

    def lost() -> None:
        raise StaleBatch("another worker has the partitions")

    outcomes = await fake.attempts().deliver(list("ab"), [[[0]], [[1]]], FakeGuard(verify=lost))
    assert outcomes == [None, None] and fake.sent == []


async def test_settled_item_is_not_sent() -> None:
    fake = SlowDestination()
    fake.answer.set()
    assert await fake.attempts().deliver([Delivered(), "b"], [[[1]]], FakeGuard()) == [Delivered(), Delivered()]
    assert fake.sent == ["b"]


def test_outcome_is_returned_only_for_the_same_record() -> None:
    kept = SettledOutcomes(10)
    kept.keep(_TP, [record(5), record(6), record(7)], [Delivered(), None, Rejected("r", "m")])
    assert kept.get(_TP, record(5)) == Delivered()
    assert kept.get(_TP, record(6)) is None
    assert kept.get(_TP, record(7)) == Rejected("r", "m")
    assert kept.get(_TP, record(5, value=b"of a topic that was created again")) is None
    assert kept.get(_TP, record(5, at_ms=2_000)) is None
    assert kept.get(TP(_TP.topic, 1), record(5)) is None


def test_outcomes_below_the_next_batch_are_dropped() -> None:
    kept = SettledOutcomes(10)
    kept.keep(_TP, [record(5), record(6)], [Delivered(), Delivered()])
    kept.keep(_TP, [record(6)], [Delivered()])
    assert kept.get(_TP, record(5)) is None and kept.get(_TP, record(6)) == Delivered()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100), st.integers(1, 8)), max_size=60))
def test_memory_is_bounded_without_commits(batches: list[tuple[int, int, int]]) -> None:
    kept = SettledOutcomes(16)
    for partition, first, count in batches:
        records = [record(first + n) for n in range(count)]
        kept.keep(TP(_TP.topic, partition), records, [Delivered()] * count)
        assert len(kept) <= 16
        assert kept.get(TP(_TP.topic, partition), records[-1]) == Delivered()


def test_only_outcomes_before_the_first_gap_are_counted() -> None:
    assert settled_count([Delivered(), Rejected("r", "m"), None, Delivered()]) == 2
    assert settled_count([None]) == 0 and settled_count([]) == 0 and settled_count([Delivered()]) == 1
