"""Hits that were set aside: each is asked again when its wait is over, until it has a final outcome (contract.md, section 6).

A record of the topic `set-aside` ends in one transaction: its outcome is counted, or it is written again for its next wait. See
codec/set_aside.py for the waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

from confluent_kafka import Message
from faust.types import TP

from pipeline.codec.set_aside import LAP_SECONDS, NOT_ASKED_PARTITION, SetAsideHit, wait_seconds
from pipeline.delivery.deliver_batch import DELIVERY_FAILED
from pipeline.delivery.deliverers import ReadHit, Received, RoutedHits, received_of
from pipeline.delivery.lanes import Guard
from pipeline.delivery.pace import TICK_SECONDS
from pipeline.delivery.set_aside_endings import Again, Ended, Ending, write_endings
from pipeline.destination import Misconfigured, Outcome, Rejected, Retry
from pipeline.errors import StaleBatch
from pipeline.kafka.expired import record_gaps
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.topics.declared import SET_ASIDE_MEMBER
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.kafka.transport.faulty import FaultyRecords, content_errors
from pipeline.telemetry.waiting import WAITING

_IN_FLIGHT = 4
"""Requests at a time of one connection."""
_ASKING_SECONDS = 10.0
"""For so long a batch begins new requests to one connection. Its other hits wait once more, since the batch holds hits of others."""


class Asked(Protocol):
    """A destination that is asked once for one hit."""

    @property
    def seconds_since_answer(self) -> float:
        """How long ago it took a hit, or refused one for a reason of the hit's own; infinite when it has not yet."""

    @property
    def is_down(self) -> bool:
        """Does the connection wait for its destination, and is no request due yet?"""

    async def ask(self, read: ReadHit, guard: Guard) -> Outcome:
        """Return its answer. Raises StaleBatch when `guard` does, before the request."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """How long hits of a connection are asked again, as its `delivery` says; None: for ever."""

    give_up_after_seconds: float
    give_up_misconfigured_after_seconds: float | None = None


class _Due(NamedTuple):
    """A record whose wait is over."""

    place: tuple[TP, int]
    hit: SetAsideHit
    read: ReadHit
    written_at: float
    """When its wait began, in seconds since 1970."""


class AskAgain:
    """Handles the batches of the topic `set-aside`.

    `connections` are those that may have hits there, by name. `deliverers` are those of this process now.
    """

    def __init__(
        self,
        names: TopicNames,
        hits: RoutedHits,
        connections: Mapping[str, GiveUp],
        deliverers: Mapping[str, Asked],
        lap_seconds: float = LAP_SECONDS,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._names = names
        self._hits = hits
        self._connections = connections
        self._deliverers = deliverers
        self._lap_seconds = lap_seconds
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._began = wall_clock()
        self._faulty = FaultyRecords()
        self._kept: dict[tuple[TP, int], tuple[Message, Ending]] = {}
        """Endings that may not be committed yet, by place: a record that is read again after an abort is not asked again."""

    async def handle(self, batch: Batch, consumer: BatchConsumer) -> None:
        """Ask the hits of `batch` whose wait is over, and commit what became of them. Raises StaleBatch."""
        with self._faulty.isolating(batch, consumer):
            await self._handle(batch, consumer)

    async def _handle(self, batch: Batch, consumer: BatchConsumer) -> None:
        with consumer.guard(batch) as guard:
            counts = {tp: self._due_first(tp, records) for tp, records in batch.records.items()}
            due = batch.first(counts)
            if not due.next_offsets:
                await self._wait(batch, guard)
                consumer.read_again(batch)
                return
            received = await received_of(
                SET_ASIDE_MEMBER, self._hits, due.records, guard.raise_if_stale, self._sleep, is_shown=False
            )
            with content_errors():
                endings = await self._endings(received, guard)
            counts = {tp: _settled_first(part) for tp, part in endings.items()}
            settled = due.first(counts)
            if not settled.next_offsets:
                raise StaleBatch("no hit that is set aside was asked")
            decided = asyncio.Event()
            async with consumer.transaction(settled) as outputs:
                outputs.after_commit(decided.set)
                outputs.after_commit(partial(self._forget, settled))
                outputs.after_abort(decided.set)
                outputs.after_refusal(partial(self._faulty.isolate, settled, consumer))
                with content_errors():
                    for tp in settled.records:
                        final = [ending for ending in endings[tp][: counts[tp]] if ending is not None]
                        write_endings(outputs, self._names, tp, received[tp][: counts[tp]], final)
                record_gaps(outputs, self._names.ledger, "set_aside", settled)
            await decided.wait()
        if settled.next_offsets != batch.next_offsets:
            consumer.read_again(batch)

    def _due_first(self, tp: TP, records: Sequence[Message]) -> int:
        """How many records at the beginning of a partition have waited long enough."""
        now = self._wall_clock()
        return next((count for count, one in enumerate(records) if self._due_at(tp, one) > now), len(records))

    def _due_at(self, tp: TP, record: Message) -> float:
        return record.timestamp()[1] / 1000 + wait_seconds(tp.partition, self._lap_seconds)

    async def _wait(self, batch: Batch, guard: Guard) -> None:
        """Until the first record is due, but no longer than a lap: others may have come meanwhile that are due sooner."""
        first = min(self._due_at(tp, records[0]) for tp, records in batch.records.items())
        until = min(first, self._wall_clock() + self._lap_seconds)
        while (left := until - self._wall_clock()) > 0:
            guard.raise_if_stale()
            await self._sleep(min(left, TICK_SECONDS))

    async def _endings(self, received: Mapping[TP, Sequence[Received]], guard: Guard) -> dict[TP, list[Ending | None]]:
        """What becomes of each record; None for one that `guard` has kept from being asked."""
        endings: dict[tuple[TP, int], Ending] = {}
        to_ask: dict[str, list[_Due]] = defaultdict(list)
        for tp, part in received.items():
            for record, read in part:
                place = (tp, record.offset() or 0)
                hit = SetAsideHit.read(record.headers())  # type: ignore[arg-type] # a list, whatever the stub says
                known = self._kept.get(place)
                if known is not None and known[0].value() == record.value() and known[0].headers() == record.headers():
                    endings[place] = known[1]
                elif (why := self._faulty.get(place)) is not None:
                    endings[place] = Ended(Rejected(DELIVERY_FAILED, why), hit)
                elif hit is None:
                    endings[place] = Ended(Rejected("invalid_set_aside", "no deliverer wrote this record"), None)
                elif isinstance(read, Rejected):
                    endings[place] = Ended(read, hit)
                elif hit.connection not in self._connections:
                    why = f"connection {hit.connection} is no longer in the file, or its destination takes no HTTP"
                    endings[place] = Ended(Rejected("connection_gone", why), hit)
                else:
                    to_ask[hit.connection].append(_Due(place, hit, read, record.timestamp()[1] / 1000))
        asking = [self._ask_all(name, due, guard, endings) for name, due in to_ask.items()]
        errors = await asyncio.gather(*asking, return_exceptions=True)
        for tp, part in received.items():
            self._keep(tp, [record for record, _ in part], endings)
        _raise_first(errors)
        return {tp: [endings.get((tp, record.offset() or 0)) for record, _ in part] for tp, part in received.items()}

    def _keep(self, tp: TP, records: Sequence[Message], endings: Mapping[tuple[TP, int], Ending]) -> None:
        """Keep what has ended; what lies below the first of `records` is committed. Those of other partitions stay, too.

        After an abort the records may come back in other batches than before.
        """
        first = records[0].offset() or 0
        self._kept = {place: kept for place, kept in self._kept.items() if place[0] != tp or place[1] >= first}
        for record in records:
            place = (tp, record.offset() or 0)
            if place in endings:
                self._kept[place] = (record, endings[place])

    async def _ask_all(
        self,
        connection: str,
        due: Sequence[_Due],
        guard: Guard,
        endings: dict[tuple[TP, int], Ending],
    ) -> None:
        """Ask for the hits of one connection. Once it does not answer, is misconfigured, or takes too long, the others wait once more.

        A hit that is not asked is not given up.
        """
        until = asyncio.get_running_loop().time() + _ASKING_SECONDS
        limits, waiting, others_wait = self._connections[connection], iter(due), False

        async def ask() -> None:
            nonlocal others_wait
            for one in waiting:
                deliverer = self._deliverers.get(connection)
                is_late = asyncio.get_running_loop().time() > until
                if others_wait or is_late or deliverer is None or deliverer.is_down:
                    endings[one.place] = Again(one.hit, NOT_ASKED_PARTITION)
                    continue
                guard.raise_if_stale()
                outcome = await deliverer.ask(one.read, guard)
                if isinstance(outcome, Misconfigured) and not outcome.is_answer:  # the destination has seen no hit
                    others_wait = True
                    endings[one.place] = Again(one.hit, NOT_ASKED_PARTITION)
                    continue
                others_wait = others_wait or isinstance(outcome, Retry)
                others_wait = others_wait or (isinstance(outcome, Misconfigured) and _is_misconfigured(one.hit))
                took_others = deliverer.seconds_since_answer < self._wall_clock() - one.written_at
                endings[one.place] = self._ending(limits, one.hit, outcome, took_others)

        _raise_first(await asyncio.gather(*(ask() for _ in range(_IN_FLIGHT)), return_exceptions=True))

    def _ending(self, limits: GiveUp, hit: SetAsideHit, outcome: Outcome, took_others: bool) -> Ending:
        """What becomes of a hit whose destination gave `outcome`.

        Only when the destination `took_others` while this hit waited is its refusal the fault of the hit, and its wait longer. A
        connection that has been mended so gets its hits soon.
        """
        if not isinstance(outcome, Misconfigured | Retry):
            return Ended(outcome, hit)
        asked, text = hit.asked + 1, outcome.message if isinstance(outcome, Misconfigured) else outcome.reason
        message = f"{text}: {outcome.said}" if outcome.said else text
        is_misconfigured = _is_misconfigured(hit)
        if self._is_given_up(limits, hit, is_misconfigured, took_others):
            setting = "give_up_misconfigured_after" if is_misconfigured else "give_up_after"
            why = f"set aside, and not taken within {setting}; asked {asked} times, the last answer: {message}"
            return Ended(Rejected("gave_up", why), hit)
        again = replace(hit, asked=asked, message=message)
        is_own_fault = took_others and not is_misconfigured
        return Again(again, again.next_partition if is_own_fault else NOT_ASKED_PARTITION)

    def _is_given_up(self, limits: GiveUp, hit: SetAsideHit, is_misconfigured: bool, took_others: bool) -> bool:
        """Has a hit that was refused now waited long enough?

        Where the destination took no others this process must have run for as long, too: it does not know what happened before,
        and after its start not yet which connections are misconfigured.
        """
        # Hits on the topic of a misconfigured connection wait for the operator, and so does this one.
        limit = limits.give_up_misconfigured_after_seconds if is_misconfigured else limits.give_up_after_seconds
        if limit is None or self._wall_clock() - hit.since_ms / 1000 < limit:
            return False
        return took_others or is_misconfigured or self._wall_clock() - self._began >= limit

    def _forget(self, settled: Batch) -> None:
        self._faulty.discard(settled)
        for tp, records in settled.records.items():
            for record in records:
                self._kept.pop((tp, record.offset() or 0), None)


def _raise_first(results: Sequence[BaseException | None]) -> None:
    """Raise the first error but StaleBatch, after which the hits that were not asked have no ending."""
    for error in results:
        if error is not None and not isinstance(error, StaleBatch):
            raise error


def _is_misconfigured(hit: SetAsideHit) -> bool:
    """Does the connection wait for its operator, as far as this process knows?"""
    waiting = WAITING.connections.get(hit.connection)
    return waiting is not None and waiting.misconfigured


def _settled_first(endings: Sequence[Ending | None]) -> int:
    return next((count for count, ending in enumerate(endings) if ending is None), len(endings))
