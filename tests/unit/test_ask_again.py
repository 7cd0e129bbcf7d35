"""Hits that were set aside are asked again until they have a final outcome; each step is counted (contract.md, section 6)."""

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
from pipeline.delivery import ask_again
from pipeline.delivery.ask_again import AskAgain, GiveUp
from pipeline.delivery.deliverers import ReadHit, RoutedHits
from pipeline.delivery.lanes import Guard
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
def _nobody_waits() -> Iterator[None]:
    """The board is the process's: other tests leave connections that still wait."""
    for connection in list(WAITING.connections):
        WAITING.end(connection)
    yield
    WAITING.end("crm")


class Destination:
    """Answers by the hitId and how often it was asked."""

    def __init__(self, answers: Callable[[str, int], Outcome]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.seconds_since_answer = 0.0
        self.is_down = False

    async def ask(self, read: ReadHit, guard: Guard) -> Outcome:
        self.asked.append(read.hit.hitId)
        return self.answers(read.hit.hitId, self.asked.count(read.hit.hitId))


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
    """The topics in memory, and a worker that reads `set-aside`; the clock moves by sleeping."""

    def __init__(self, give_up_after: float = 86_400.0, **destinations: Destination) -> None:
        self.began = self.now = time.time()
        self.topics = ClockedTopics(lambda: self.now)
        self.consumer = MemoryConsumer(self.topics, "deliver.set-aside", "set-aside")
        self.running = destinations
        self._limits = {name: GiveUp(give_up_after) for name in destinations}
        self.start_again()

    def start_again(self) -> None:
        """As a new process."""
        self.hits = RoutedHits(Framing(ROUTED_HIT_SCHEMA))
        self.asking = AskAgain(_NAMES, self.hits, self._limits, self.running, 30.0, lambda: self.now, self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def put(self, *hit_ids: str, connection: str = "crm", asked: int = 1, door: str = "secret") -> None:
        """As the deliverer writes them."""
        for offset, hit_id in enumerate(hit_ids):
            times = f'"receivedAt":"{_TIME}","sentAt":"{_TIME}"'
            value = f'{{"hitId":"{hit_id}","projectId":"shop","door":"{door}",{times},"event":{{}},"context":{{}}}}'
            since_ms = round(self.now * 1000)
            hit = SetAsideHit(connection, "shop", f"deliveries-{connection}", 3, offset, since_ms, asked, "http_403")
            self.topics.produce("set-aside", value.encode(), b"u", hit.next_partition, hit.headers())

    async def run(self, seconds: float) -> None:
        """Let the worker work for so long."""
        until = self.now + seconds
        while self.now < until and (batch := self.consumer.next_batch()) is not None:
            await self.asking.handle(batch, self.consumer)

    async def abort(self, batch: Batch) -> None:
        """Let the worker work on `batch`, whose transaction fails."""
        transaction = self.consumer.transaction

        def aborts(_: object) -> object:
            raise ConnectionError("away")

        self.consumer.transaction = aborts  # type: ignore[method-assign,assignment]
        with pytest.raises(ConnectionError):
            await self.asking.handle(batch, self.consumer)
        self.consumer.transaction = transaction  # type: ignore[method-assign]

    def waiting(self) -> list[SetAsideHit]:
        """The unread records."""
        batch = self.consumer.next_batch()
        records = [record for part in batch.records.values() for record in part] if batch else []
        return [hit for record in records if (hit := SetAsideHit.read(record.headers())) is not None]  # type: ignore[arg-type]

    def letters(self) -> list[Message]:
        """The dead letters."""
        return [record for part in self.topics.records["dead-letters"].values() for record in part]

    def ledger(self, *before: LedgerEntry) -> Ledger:
        """The sums of what the worker wrote, and of the entries `before`."""
        return sum_ledger([*before, *(decode_ledger_entry(value or b"") for value in self.topics.values("ledger"))])


def set_aside(count: int) -> LedgerEntry:
    counts = {Entry("shop", "crm", SET_ASIDE, "http_403"): count}
    entry = LedgerEntry("deliver", "deliveries-crm", 3, 0, count, 0)
    entry.counts.update(counts)
    return entry


async def test_each_refusal_doubles_the_wait_up_to_half_an_hour() -> None:
    times: list[float] = []
    world = World(crm=Destination(lambda name, time: times.append(world.now - world.began) or _REFUSED))  # type: ignore[func-returns-value]
    world.put("bad")
    await world.run(3 * 3600.0)
    waits = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert waits[:9] == pytest.approx([30, 60, 120, 240, 480, 960, 1920, 1920, 1920], abs=2.0)
    (hit,) = world.waiting()
    assert (hit.asked, hit.message) == (len(times) + 1, "http_403: a firewall")
    assert hit.offset == 0 and hit.topic == "deliveries-crm"
    ledger = world.ledger(set_aside(1))
    assert ledger.connections["crm"].set_aside == 1 and ledger.problems == []


async def test_a_hit_that_is_taken_at_last_is_delivered_once_and_counted_once() -> None:
    crm = Destination(lambda name, time: Delivered() if time == 3 else _REFUSED)
    world = World(crm=crm)
    world.put("a", "b")
    await world.run(3600.0)
    assert sorted(crm.asked) == ["a"] * 3 + ["b"] * 3 and world.waiting() == [] and world.letters() == []
    sums = world.ledger(set_aside(2)).connections["crm"]
    assert (sums.delivered, sums.set_aside) == (2, 0)
    # Offsets that Kafka has dropped are found in the ledger.
    entries = [decode_ledger_entry(value or b"") for value in world.topics.values("ledger")]
    committed = {tp.partition: offset for tp, offset in world.topics.offsets["deliver.set-aside"].items()}
    assert progress_in(entries, "set_aside", "set-aside") == committed != {}


@pytest.mark.parametrize(("outcome", "count"), [(Rejected("http_422", "no"), "dead"), (Skipped("no use"), "skipped")])
async def test_other_outcomes_are_final_too(outcome: Outcome, count: str) -> None:
    world = World(crm=Destination(lambda name, time: outcome))
    world.put("a")
    await world.run(60.0)
    sums = world.ledger(set_aside(1)).connections["crm"]
    assert getattr(sums, count) == 1 and sums.set_aside == 0


@pytest.mark.parametrize("answer", [_REFUSED, Retry("http_503", said="a firewall")])
async def test_a_hit_that_is_refused_for_too_long_is_a_dead_letter_at_its_first_place(answer: Outcome) -> None:
    world = World(give_up_after=300.0, crm=Destination(lambda name, time: answer))
    world.put("first", "bad")
    await world.run(3600.0)
    assert 300.0 <= world.now - world.began < 700.0 or world.waiting() == []
    letters = [header_texts(letter) for letter in world.letters()]
    assert {letter["reason"] for letter in letters} == {"gave_up"} and len(letters) == 2
    assert all("a firewall" in letter["message"] for letter in letters)
    places = [(one["origin-topic"], one["origin-partition"], one["origin-offset"]) for one in letters]
    assert sorted(places) == [("deliveries-crm", "3", "0"), ("deliveries-crm", "3", "1")]
    sums = world.ledger(set_aside(2)).connections["crm"]
    assert (sums.dead, sums.set_aside) == (2, 0)


async def test_a_dead_letter_has_the_door_of_its_hit() -> None:
    world = World(crm=Destination(lambda name, time: Rejected("http_422", "no")))
    world.put("a", door="public")
    world.put("b")
    await world.run(60.0)
    assert [header_texts(letter).get("door") for letter in world.letters()] == ["public", None]


async def test_a_slow_destination_holds_up_the_hits_of_others_for_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_again, "_ASKING_SECONDS", 0.05)

    class Slow(Destination):
        async def ask(self, read: ReadHit, guard: Guard) -> Outcome:
            await asyncio.sleep(0.02)
            return await super().ask(read, guard)

    crm = Slow(lambda name, time: Delivered())
    world = World(crm=crm)
    world.put(*(f"crm-{n}" for n in range(100)))
    world.now += 31.0
    await world.run(0.1)
    assert 4 <= len(crm.asked) <= 20 and len(world.waiting()) == 100 - len(crm.asked)
    monkeypatch.undo()
    await world.run(61.0)
    assert len(crm.asked) == len(set(crm.asked)) == 100 and world.waiting() == []


async def test_while_its_connection_waits_for_the_operator_a_hit_is_not_given_up() -> None:
    world = World(give_up_after=300.0, crm=Destination(lambda name, time: _REFUSED))
    WAITING.begin("crm", Waiting(True, "http_401", 300.0))
    world.put("bad")
    await world.run(7200.0)
    assert len(world.waiting()) == 1 and world.letters() == []
    WAITING.end("crm")
    await world.run(3600.0)
    assert world.waiting() == [] and len(world.letters()) == 1


@pytest.mark.parametrize("answer", [_REFUSED, Retry("http_503")])
async def test_a_day_without_a_worker_costs_no_hit_that_was_not_refused_for_as_long(answer: Outcome) -> None:
    crm = Destination(lambda name, time: answer)
    crm.seconds_since_answer = math.inf
    world = World(crm=crm)
    world.put(*(f"crm-{n}" for n in range(50)))
    world.now += 90_000.0
    world.start_again()
    await world.run(3600.0)
    assert world.letters() == [] and len(world.waiting()) == 50
    crm.answers = lambda name, time: Delivered()
    await world.run(120.0)
    assert world.waiting() == [] and world.letters() == []


async def test_a_hit_that_was_not_asked_is_not_given_up() -> None:
    world = World(give_up_after=300.0, crm=Destination(lambda name, time: _REFUSED))
    world.put("a")
    world.running.clear()  # its connection is about to start
    await world.run(3600.0)
    assert world.letters() == [] and len(world.waiting()) == 1


async def test_the_wait_stays_short_until_the_destination_takes_other_hits() -> None:
    times: list[float] = []
    crm = Destination(lambda name, time: times.append(world.now - world.began) or _REFUSED)  # type: ignore[func-returns-value]
    crm.seconds_since_answer = math.inf  # as after a restart, or while every hit is refused
    world = World(crm=crm)
    world.put("one")
    await world.run(1800.0)
    waits = [after - before for before, after in pairwise(times)]
    assert len(waits) > 50 and all(wait == pytest.approx(30.0, abs=2.0) for wait in waits)
    crm.seconds_since_answer = 10.0
    await world.run(3600.0)
    assert times[-1] - times[-2] > 900.0


async def test_a_registry_that_is_away_makes_no_connection_wait_that_nobody_has() -> None:
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


async def test_a_destination_that_does_not_answer_holds_up_no_other() -> None:
    down, well = Destination(lambda name, time: Retry("timeout")), Destination(lambda name, time: Delivered())
    world = World(crm=down, ads=well)
    world.put(*(f"crm-{n}" for n in range(50)))
    world.put(*(f"ads-{n}" for n in range(50)), connection="ads")
    await world.run(40.0)
    assert len(well.asked) == 50 and len(down.asked) <= 4
    assert len(world.waiting()) == 50 and {hit.asked for hit in world.waiting()} <= {1, 2}


async def test_a_destination_that_wants_a_pause_is_not_asked_before_its_end() -> None:
    crm = Destination(lambda name, time: Delivered())
    crm.is_down = True
    world = World(crm=crm)
    world.put("a")
    await world.run(3600.0)
    assert crm.asked == [] and len(world.waiting()) == 1
    crm.is_down = False
    await world.run(61.0)
    assert crm.asked == ["a"] and world.waiting() == []


async def test_a_proxy_that_lets_nothing_through_costs_no_hit_and_no_request_for_each() -> None:
    blocked = Misconfigured("the proxy answers 407", is_answer=False)
    crm = Destination(lambda name, time: blocked)
    world = World(give_up_after=300.0, crm=crm)
    world.put(*(f"crm-{n}" for n in range(50)))
    await world.run(3600.0)
    assert len(world.waiting()) == 50 and world.letters() == [] and len(crm.asked) <= 4 * 61
    assert {hit.asked for hit in world.waiting()} == {1}


async def test_a_connection_that_is_gone_and_a_record_of_somebody_else_are_dead_letters() -> None:
    world = World(crm=Destination(lambda name, time: Delivered()))
    world.put("a", connection="old")
    world.topics.produce("set-aside", b"{}", b"k", 0)
    await world.run(60.0)
    reasons = [header_texts(letter)["reason"] for letter in world.letters()]
    assert sorted(reasons) == ["connection_gone", "invalid_set_aside"]
    assert world.ledger().connections["old"].dead == 1 and "" not in world.ledger().connections


async def test_a_long_wait_holds_up_no_short_one() -> None:
    crm = Destination(lambda name, time: Delivered())
    world = World(crm=crm)
    world.put("late", asked=PARTITIONS)
    batch = world.consumer.next_batch()
    assert batch is not None
    await world.asking.handle(batch, world.consumer)  # waits for a lap, and looks again
    world.put("early")
    await world.run(45.0)
    assert crm.asked == ["early"] and wait_seconds(PARTITIONS - 1) == 1920.0


async def test_what_was_asked_before_an_abort_is_not_asked_again() -> None:
    crm = Destination(lambda name, time: Delivered())
    world = World(crm=crm)
    world.put("a")
    world.now += 31.0
    batch = world.consumer.next_batch()
    assert batch is not None
    await world.abort(batch)
    await world.run(60.0)
    assert crm.asked == ["a"] and world.waiting() == []


async def test_nor_is_it_when_its_record_comes_back_in_a_smaller_batch() -> None:
    crm = Destination(lambda name, time: Delivered())
    world = World(crm=crm)
    world.put("a")
    world.put("b", asked=2)
    world.now += 61.0
    batch = world.consumer.next_batch()
    assert batch is not None and len(batch) == 2
    await world.abort(batch)
    for tp in batch.records:
        await world.asking.handle(batch.first({other: 0 for other in batch.records if other != tp}), world.consumer)
    assert sorted(crm.asked) == ["a", "b"] and world.waiting() == [] and world.asking._kept == {}


async def test_an_error_beside_it_does_not_undo_what_a_hit_was_answered() -> None:
    class Slow(Destination):
        async def ask(self, read: ReadHit, guard: Guard) -> Outcome:
            await asyncio.sleep(0.01)
            return await super().ask(read, guard)

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
    assert (crm.asked, ads.asked) == (["a", "a"], ["b"]) and world.waiting() == []
