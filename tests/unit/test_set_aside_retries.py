"""Hits that were set aside are retried until they have a final outcome; each step is counted (contract.md, section 6)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from confluent_kafka import Message

from pipeline.codec.avro import Framing
from pipeline.codec.ledger_entry import SET_ASIDE, Entry, LedgerEntry, decode_ledger_entry
from pipeline.codec.raw_record import Headers
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.codec.set_aside import PARTITIONS, SetAsideHit, wait_seconds
from pipeline.delivery import set_aside_retries
from pipeline.delivery.deliverers import ReadHit, RoutedHits
from pipeline.delivery.lanes import Guard
from pipeline.delivery.set_aside_retries import GiveUpLimits, SetAsideRetries
from pipeline.destination import Delivered, Misconfigured, Outcome, Rejected, Retry, Skipped
from pipeline.errors import RegistryUnavailable
from pipeline.kafka.lost_offsets import progress_in
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transport.batch import Batch
from pipeline.kafka.transport.memory import MemoryConsumer, MemoryTopics
from pipeline.operations.ledger_sums import Ledger, sum_ledger
from pipeline.operations.read_topic import header_texts
from pipeline.telemetry.waiting import WAITING, Waiting

pytestmark = pytest.mark.anyio
_NAMES = TopicNames("")
_TIME = "2026-11-24T10:15:30.123Z"
_REFUSED = Misconfigured("http_403", "a firewall")


@pytest.fixture(autouse=True)
def _no_connection_is_paused() -> Iterator[None]:
    """The board is global, and other tests may leave paused connections on it."""
    for connection in list(WAITING.connections):
        WAITING.end(connection)
    yield
    WAITING.end("crm")


class Destination:
    """Answers by the hitId and how often it was sent."""

    def __init__(self, answers: Callable[[str, int], Outcome]) -> None:
        self.answers = answers
        self.sent: list[str] = []
        self.seconds_since_healthy = 0.0
        self.is_down = False

    async def send_one(self, read: ReadHit, guard: Guard) -> Outcome:
        self.sent.append(read.hit.hitId)
        return self.answers(read.hit.hitId, self.sent.count(read.hit.hitId))


class ClockedTopics(MemoryTopics):
    """Topics whose records are written at `now`."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(PARTITIONS)
        self._now = now

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Headers | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        """See MemoryTopics."""
        super().produce(topic, value, key, partition, headers, round(self._now() * 1000))


class World:
    """Topics in memory and a worker that reads `set-aside`; the clock advances only by sleeping."""

    def __init__(self, give_up_after: float = 86_400.0, **destinations: Destination) -> None:
        self.started_at = self.now = time.time()
        self.topics = ClockedTopics(lambda: self.now)
        self.consumer = MemoryConsumer(self.topics, "deliver.set-aside", "set-aside")
        self.running = destinations
        self._limits = {name: GiveUpLimits(give_up_after) for name in destinations}
        self.start_again()

    def start_again(self) -> None:
        """Replace the worker by a new process."""
        self.hits = RoutedHits(Framing(ROUTED_HIT_SCHEMA))
        self.retries = SetAsideRetries(
            _NAMES, self.hits, self._limits, self.running, 30.0, lambda: self.now, self.sleep
        )

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def put(self, *hit_ids: str, connection: str = "crm", asked: int = 1, door: str = "secret") -> None:
        """Write hits to `set-aside` as the deliverer does."""
        for offset, hit_id in enumerate(hit_ids):
            times = f'"receivedAt":"{_TIME}","sentAt":"{_TIME}"'
            value = f'{{"hitId":"{hit_id}","projectId":"shop","door":"{door}",{times},"event":{{}},"context":{{}}}}'
            since_ms = round(self.now * 1000)
            hit = SetAsideHit(connection, "shop", f"deliveries-{connection}", 3, offset, since_ms, asked, "http_403")
            self.topics.produce("set-aside", value.encode(), b"u", hit.next_partition, hit.headers())

    async def run(self, seconds: float) -> None:
        """Run the worker for `seconds`."""
        until = self.now + seconds
        while self.now < until and (batch := self.consumer.next_batch()) is not None:
            await self.retries.handle(batch, self.consumer)

    async def abort(self, batch: Batch) -> None:
        """Let the worker handle `batch` and its transaction fail."""
        transaction = self.consumer.transaction

        def aborts(_: object) -> object:
            raise ConnectionError("away")

        self.consumer.transaction = aborts  # type: ignore[method-assign,assignment]
        with pytest.raises(ConnectionError):
            await self.retries.handle(batch, self.consumer)
        self.consumer.transaction = transaction  # type: ignore[method-assign]

    def waiting(self) -> list[SetAsideHit]:
        """Return the unread records."""
        batch = self.consumer.next_batch()
        records = [record for part in batch.records.values() for record in part] if batch else []
        return [hit for record in records if (hit := SetAsideHit.read(record.headers())) is not None]  # type: ignore[arg-type]

    def dead_letters(self) -> list[Message]:
        """Return the dead letters."""
        return [record for part in self.topics.records["dead-letters"].values() for record in part]

    def ledger(self, *before: LedgerEntry) -> Ledger:
        """Return the sums of the entries `before` and those that the worker wrote."""
        return sum_ledger([*before, *(decode_ledger_entry(value or b"") for value in self.topics.values("ledger"))])


def set_aside(count: int) -> LedgerEntry:
    counts = {Entry("shop", "crm", SET_ASIDE, "http_403"): count}
    entry = LedgerEntry("deliver", "deliveries-crm", 3, 0, count, 0)
    entry.counts.update(counts)
    return entry


async def test_each_refusal_doubles_the_wait_up_to_32_minutes() -> None:
    times: list[float] = []
    world = World(crm=Destination(lambda name, time: times.append(world.now - world.started_at) or _REFUSED))  # type: ignore[func-returns-value]
    world.put("bad")
    await world.run(3 * 3600.0)
    waits = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert waits[:9] == pytest.approx([30, 60, 120, 240, 480, 960, 1920, 1920, 1920], abs=2.0)
    (hit,) = world.waiting()
    assert (hit.asked, hit.message) == (len(times) + 1, "http_403: a firewall")
    assert hit.offset == 0 and hit.topic == "deliveries-crm"
    ledger = world.ledger(set_aside(1))
    assert ledger.connections["crm"].set_aside == 1 and ledger.problems == []


async def test_hit_that_is_finally_accepted_is_delivered_and_counted_once() -> None:
    crm = Destination(lambda name, time: Delivered() if time == 3 else _REFUSED)
    world = World(crm=crm)
    world.put("a", "b")
    await world.run(3600.0)
    assert sorted(crm.sent) == ["a"] * 3 + ["b"] * 3 and world.waiting() == [] and world.dead_letters() == []
    sums = world.ledger(set_aside(2)).connections["crm"]
    assert (sums.delivered, sums.set_aside) == (2, 0)
    # Lost offsets can be restored from the ledger.
    entries = [decode_ledger_entry(value or b"") for value in world.topics.values("ledger")]
    committed = {tp.partition: offset for tp, offset in world.topics.offsets["deliver.set-aside"].items()}
    assert progress_in(entries, "set_aside", "set-aside") == committed != {}


@pytest.mark.parametrize(("outcome", "count"), [(Rejected("http_422", "no"), "dead"), (Skipped("no use"), "skipped")])
async def test_rejected_and_skipped_are_final(outcome: Outcome, count: str) -> None:
    world = World(crm=Destination(lambda name, time: outcome))
    world.put("a")
    await world.run(60.0)
    sums = world.ledger(set_aside(1)).connections["crm"]
    assert getattr(sums, count) == 1 and sums.set_aside == 0


@pytest.mark.parametrize("answer", [_REFUSED, Retry("http_503", said="a firewall")])
async def test_hit_refused_past_the_limit_becomes_a_dead_letter_with_its_original_position(answer: Outcome) -> None:
    world = World(give_up_after=300.0, crm=Destination(lambda name, time: answer))
    world.put("first", "bad")
    await world.run(3600.0)
    assert 300.0 <= world.now - world.started_at < 700.0 or world.waiting() == []
    dead_letters = [header_texts(dead_letter) for dead_letter in world.dead_letters()]
    assert {dead_letter["reason"] for dead_letter in dead_letters} == {"gave_up"} and len(dead_letters) == 2
    assert all("a firewall" in dead_letter["message"] for dead_letter in dead_letters)
    places = [(one["origin-topic"], one["origin-partition"], one["origin-offset"]) for one in dead_letters]
    assert sorted(places) == [("deliveries-crm", "3", "0"), ("deliveries-crm", "3", "1")]
    sums = world.ledger(set_aside(2)).connections["crm"]
    assert (sums.dead, sums.set_aside) == (2, 0)


async def test_dead_letter_keeps_the_door_of_its_hit() -> None:
    world = World(crm=Destination(lambda name, time: Rejected("http_422", "no")))
    world.put("a", door="public")
    world.put("b")
    await world.run(60.0)
    assert [header_texts(dead_letter).get("door") for dead_letter in world.dead_letters()] == ["public", None]


async def test_slow_destination_delays_other_connections_only_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_aside_retries, "_SENDING_SECONDS", 0.05)

    class Slow(Destination):
        async def send_one(self, read: ReadHit, guard: Guard) -> Outcome:
            await asyncio.sleep(0.02)
            return await super().send_one(read, guard)

    crm = Slow(lambda name, time: Delivered())
    world = World(crm=crm)
    world.put(*(f"crm-{n}" for n in range(100)))
    world.now += 31.0
    await world.run(0.1)
    assert 4 <= len(crm.sent) <= 20 and len(world.waiting()) == 100 - len(crm.sent)
    monkeypatch.undo()
    await world.run(61.0)
    assert len(crm.sent) == len(set(crm.sent)) == 100 and world.waiting() == []


async def test_hit_of_a_misconfigured_connection_is_not_given_up() -> None:
    world = World(give_up_after=300.0, crm=Destination(lambda name, time: _REFUSED))
    WAITING.begin("crm", Waiting(True, "http_401", 300.0))
    world.put("bad")
    await world.run(7200.0)
    assert len(world.waiting()) == 1 and world.dead_letters() == []
    WAITING.end("crm")
    await world.run(3600.0)
    assert world.waiting() == [] and len(world.dead_letters()) == 1


@pytest.mark.parametrize("answer", [_REFUSED, Retry("http_503")])
async def test_hits_are_not_given_up_right_after_a_day_without_a_worker(answer: Outcome) -> None:
    crm = Destination(lambda name, time: answer)
    crm.seconds_since_healthy = math.inf
    world = World(crm=crm)
    world.put(*(f"crm-{n}" for n in range(50)))
    world.now += 90_000.0
    world.start_again()
    await world.run(3600.0)
    assert world.dead_letters() == [] and len(world.waiting()) == 50
    crm.answers = lambda name, time: Delivered()
    await world.run(120.0)
    assert world.waiting() == [] and world.dead_letters() == []


async def test_hit_that_was_not_sent_is_not_given_up() -> None:
    world = World(give_up_after=300.0, crm=Destination(lambda name, time: _REFUSED))
    world.put("a")
    world.running.clear()  # its connection has not started yet
    await world.run(3600.0)
    assert world.dead_letters() == [] and len(world.waiting()) == 1


async def test_wait_stays_short_until_the_destination_accepts_other_hits() -> None:
    times: list[float] = []
    crm = Destination(lambda name, time: times.append(world.now - world.started_at) or _REFUSED)  # type: ignore[func-returns-value]
    crm.seconds_since_healthy = math.inf  # as after a restart, or while every hit is refused
    world = World(crm=crm)
    world.put("one")
    await world.run(1800.0)
    waits = [after - before for before, after in pairwise(times)]
    assert len(waits) > 50 and all(wait == pytest.approx(30.0, abs=2.0) for wait in waits)
    crm.seconds_since_healthy = 10.0
    await world.run(3600.0)
    assert times[-1] - times[-2] > 900.0


async def test_unavailable_registry_does_not_report_set_aside_as_a_paused_connection() -> None:
    world = World(crm=Destination(lambda name, time: Delivered()))
    world.put("a")
    read, shown = world.hits.read, []

    def away(value: bytes | None) -> ReadHit:
        shown.append(dict(WAITING.connections))
        if len(shown) < 3:
            raise RegistryUnavailable("away")
        return read(value)

    world.hits.read = away  # type: ignore[method-assign,assignment]
    await world.run(120.0)
    assert world.waiting() == [] and shown == [{}] * 3


async def test_failing_destination_does_not_delay_others() -> None:
    down, healthy = Destination(lambda name, time: Retry("timeout")), Destination(lambda name, time: Delivered())
    world = World(crm=down, ads=healthy)
    world.put(*(f"crm-{n}" for n in range(50)))
    world.put(*(f"ads-{n}" for n in range(50)), connection="ads")
    await world.run(40.0)
    assert len(healthy.sent) == 50 and len(down.sent) <= 4
    assert len(world.waiting()) == 50 and {hit.asked for hit in world.waiting()} <= {1, 2}


async def test_hit_is_not_sent_while_the_destination_is_down() -> None:
    crm = Destination(lambda name, time: Delivered())
    crm.is_down = True
    world = World(crm=crm)
    world.put("a")
    await world.run(3600.0)
    assert crm.sent == [] and len(world.waiting()) == 1
    crm.is_down = False
    await world.run(61.0)
    assert crm.sent == ["a"] and world.waiting() == []


async def test_blocking_proxy_costs_no_hit_and_few_requests() -> None:
    blocked = Misconfigured("the proxy answers 407", is_answer=False)
    crm = Destination(lambda name, time: blocked)
    world = World(give_up_after=300.0, crm=crm)
    world.put(*(f"crm-{n}" for n in range(50)))
    await world.run(3600.0)
    assert len(world.waiting()) == 50 and world.dead_letters() == [] and len(crm.sent) <= 4 * 61
    assert {hit.asked for hit in world.waiting()} == {1}


async def test_removed_connection_and_foreign_record_become_dead_letters() -> None:
    world = World(crm=Destination(lambda name, time: Delivered()))
    world.put("a", connection="old")
    world.topics.produce("set-aside", b"{}", b"k", 0)
    await world.run(60.0)
    reasons = [header_texts(dead_letter)["reason"] for dead_letter in world.dead_letters()]
    assert sorted(reasons) == ["connection_gone", "invalid_set_aside"]
    assert world.ledger().connections["old"].dead == 1 and "" not in world.ledger().connections


async def test_long_wait_does_not_delay_a_short_one() -> None:
    crm = Destination(lambda name, time: Delivered())
    world = World(crm=crm)
    world.put("late", asked=PARTITIONS)
    batch = world.consumer.next_batch()
    assert batch is not None
    await world.retries.handle(batch, world.consumer)  # waits for one lap, then reads again
    world.put("early")
    await world.run(45.0)
    assert crm.sent == ["early"] and wait_seconds(PARTITIONS - 1) == 1920.0


async def test_hit_sent_before_an_abort_is_not_sent_again() -> None:
    crm = Destination(lambda name, time: Delivered())
    world = World(crm=crm)
    world.put("a")
    world.now += 31.0
    batch = world.consumer.next_batch()
    assert batch is not None
    await world.abort(batch)
    await world.run(60.0)
    assert crm.sent == ["a"] and world.waiting() == []


async def test_hit_sent_before_an_abort_is_not_sent_again_in_a_smaller_batch() -> None:
    crm = Destination(lambda name, time: Delivered())
    world = World(crm=crm)
    world.put("a")
    world.put("b", asked=2)
    world.now += 61.0
    batch = world.consumer.next_batch()
    assert batch is not None and len(batch) == 2
    await world.abort(batch)
    for tp in batch.records:
        await world.retries.handle(batch.first({other: 0 for other in batch.records if other != tp}), world.consumer)
    assert sorted(crm.sent) == ["a", "b"] and world.waiting() == [] and world.retries._uncommitted == {}


async def test_error_of_one_hit_keeps_the_results_of_others() -> None:
    class Slow(Destination):
        async def send_one(self, read: ReadHit, guard: Guard) -> Outcome:
            await asyncio.sleep(0.01)
            return await super().send_one(read, guard)

    def fail(name: str, time: int) -> Outcome:
        if time == 1:
            raise ConnectionError("Kafka is away")
        return Delivered()

    crm, ads = Destination(fail), Slow(lambda name, time: Delivered())
    world = World(crm=crm, ads=ads)
    world.put("a")
    world.put("b", connection="ads")
    with pytest.raises(ConnectionError):
        await world.run(60.0)
    await world.run(60.0)
    assert (crm.sent, ads.sent) == (["a", "a"], ["b"]) and world.waiting() == []
