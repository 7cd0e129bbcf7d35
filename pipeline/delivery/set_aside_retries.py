"""Retries hits that were set aside, each after its wait, until it has a final outcome (contract.md, section 6).

Each record of the topic `set-aside` is settled in one transaction: its outcome is counted, or it is written again for its next
wait. For the waits see codec/set_aside.py.
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
from pipeline.delivery.deliverers import ReadHit, Received, RoutedHits, read_records
from pipeline.delivery.lanes import Guard
from pipeline.delivery.pace import TICK_SECONDS
from pipeline.delivery.set_aside_results import Finished, RetryResult, SetAsideAgain, write_results
from pipeline.destination import Misconfigured, Outcome, Rejected, Retry
from pipeline.errors import StaleBatch
from pipeline.kafka.expired import record_gaps
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.topics.declared import SET_ASIDE_MEMBER
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.kafka.transport.faulty import FaultyRecords, content_errors
from pipeline.telemetry.waiting import WAITING

_MAX_IN_FLIGHT = 4
"""Most concurrent requests to one connection."""
_SENDING_SECONDS = 10.0
"""A batch starts new requests to one connection for this long. The remaining hits then wait again, and do not delay other connections."""


class HitSender(Protocol):
    """Sends single hits to one destination."""

    @property
    def seconds_since_healthy(self) -> float:
        """Seconds since the destination accepted a hit, or rejected one for the hit's own fault; infinite if never."""

    @property
    def is_down(self) -> bool:
        """True while the destination is failing and no probe is due."""

    async def send_one(self, read: ReadHit, guard: Guard) -> Outcome:
        """Send one hit once and return its outcome. Raises StaleBatch before the request if `guard` does."""


@dataclass(frozen=True, slots=True)
class GiveUpLimits:
    """How long hits of a connection are retried, as its `delivery` configures; None: without limit."""

    give_up_after_seconds: float
    give_up_misconfigured_after_seconds: float | None = None


class _Due(NamedTuple):
    """A record whose wait is over."""

    place: tuple[TP, int]
    hit: SetAsideHit
    read: ReadHit
    written_at: float
    """Start of its wait, in Unix time."""


class SetAsideRetries:
    """Handles the batches of the topic `set-aside`.

    `connections` holds the limits of all connections that can have hits there. `senders` holds the running ones of this process.
    """

    def __init__(
        self,
        names: TopicNames,
        hits: RoutedHits,
        connections: Mapping[str, GiveUpLimits],
        senders: Mapping[str, HitSender],
        lap_seconds: float = LAP_SECONDS,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._names = names
        self._hits = hits
        self._connections = connections
        self._senders = senders
        self._lap_seconds = lap_seconds
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._started_at = wall_clock()
        self._faulty = FaultyRecords()
        self._uncommitted: dict[tuple[TP, int], tuple[Message, RetryResult]] = {}
        """Results by position until they are committed, so that a record that is read again after an abort is not sent again."""

    async def handle(self, batch: Batch, consumer: BatchConsumer) -> None:
        """Send the hits of `batch` whose wait is over, and commit their results. Raises StaleBatch."""
        with self._faulty.isolating(batch, consumer):
            await self._handle(batch, consumer)

    async def _handle(self, batch: Batch, consumer: BatchConsumer) -> None:
        with consumer.guard(batch) as guard:
            counts = {tp: self._due_count(tp, records) for tp, records in batch.records.items()}
            due = batch.first(counts)
            if not due.next_offsets:
                await self._wait_until_due(batch, guard)
                consumer.read_again(batch)
                return
            received = await read_records(
                SET_ASIDE_MEMBER, self._hits, due.records, guard.raise_if_stale, self._sleep, reports_pause=False
            )
            with content_errors():
                results = await self._results(received, guard)
            counts = {tp: _settled_count(part) for tp, part in results.items()}
            settled = due.first(counts)
            if not settled.next_offsets:
                raise StaleBatch("no hit that is set aside was sent")
            decided = asyncio.Event()
            async with consumer.transaction(settled) as outputs:
                outputs.after_commit(decided.set)
                outputs.after_commit(partial(self._forget, settled))
                outputs.after_abort(decided.set)
                outputs.after_refusal(partial(self._faulty.isolate, settled, consumer))
                with content_errors():
                    for tp in settled.records:
                        final = [result for result in results[tp][: counts[tp]] if result is not None]
                        write_results(outputs, self._names, tp, received[tp][: counts[tp]], final)
                record_gaps(outputs, self._names.ledger, "set_aside", settled)
            await decided.wait()
        if settled.next_offsets != batch.next_offsets:
            consumer.read_again(batch)

    def _due_count(self, tp: TP, records: Sequence[Message]) -> int:
        """Return how many records at the start of a partition are due."""
        now = self._wall_clock()
        return next((count for count, one in enumerate(records) if self._due_at(tp, one) > now), len(records))

    def _due_at(self, tp: TP, record: Message) -> float:
        return record.timestamp()[1] / 1000 + wait_seconds(tp.partition, self._lap_seconds)

    async def _wait_until_due(self, batch: Batch, guard: Guard) -> None:
        """Wait until the first record is due, at most one lap: records that arrive meanwhile may be due sooner."""
        first = min(self._due_at(tp, records[0]) for tp, records in batch.records.items())
        until = min(first, self._wall_clock() + self._lap_seconds)
        while (left := until - self._wall_clock()) > 0:
            guard.raise_if_stale()
            await self._sleep(min(left, TICK_SECONDS))

    async def _results(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[RetryResult | None]]:
        """Return the result of each record; None for one that was not sent, because `guard` found the batch stale."""
        results: dict[tuple[TP, int], RetryResult] = {}
        to_send: dict[str, list[_Due]] = defaultdict(list)
        for tp, part in received.items():
            for record, read in part:
                place = (tp, record.offset() or 0)
                hit = SetAsideHit.read(record.headers())  # type: ignore[arg-type] # a list at run time
                known = self._uncommitted.get(place)
                if known is not None and known[0].value() == record.value() and known[0].headers() == record.headers():
                    results[place] = known[1]
                elif (reason := self._faulty.get(place)) is not None:
                    results[place] = Finished(Rejected(DELIVERY_FAILED, reason), hit)
                elif hit is None:
                    results[place] = Finished(
                        Rejected("invalid_set_aside", "not a record of a hit that was set aside"), None
                    )
                elif isinstance(read, Rejected):
                    results[place] = Finished(read, hit)
                elif hit.connection not in self._connections:
                    reason = (
                        f"connection {hit.connection} is no longer configured, or its destination does not use HTTP"
                    )
                    results[place] = Finished(Rejected("connection_gone", reason), hit)
                else:
                    to_send[hit.connection].append(_Due(place, hit, read, record.timestamp()[1] / 1000))
        sending = [self._send_all(name, due, guard, results) for name, due in to_send.items()]
        errors = await asyncio.gather(*sending, return_exceptions=True)
        for tp, part in received.items():
            self._keep(tp, [record for record, _ in part], results)
        _raise_first_error(errors)
        return {tp: [results.get((tp, record.offset() or 0)) for record, _ in part] for tp, part in received.items()}

    def _keep(self, tp: TP, records: Sequence[Message], results: Mapping[tuple[TP, int], RetryResult]) -> None:
        """Keep the results of `records` until they are committed. Drop those below the first record, which are committed.

        Results of other partitions stay, because after an abort the records may come back in different batches.
        """
        first = records[0].offset() or 0
        self._uncommitted = {
            place: kept for place, kept in self._uncommitted.items() if place[0] != tp or place[1] >= first
        }
        for record in records:
            place = (tp, record.offset() or 0)
            if place in results:
                self._uncommitted[place] = (record, results[place])

    async def _send_all(
        self,
        connection: str,
        due: Sequence[_Due],
        guard: Guard,
        results: dict[tuple[TP, int], RetryResult],
    ) -> None:
        """Send the `due` hits of one connection. Once it fails, is misconfigured or takes too long, its other hits wait again.

        Only hits that were sent in this call can be given up in it.
        """
        until = asyncio.get_running_loop().time() + _SENDING_SECONDS
        limits, waiting, defer_others = self._connections[connection], iter(due), False

        async def send() -> None:
            nonlocal defer_others
            for one in waiting:
                sender = self._senders.get(connection)
                is_late = asyncio.get_running_loop().time() > until
                if defer_others or is_late or sender is None or sender.is_down:
                    results[one.place] = SetAsideAgain(one.hit, NOT_ASKED_PARTITION)
                    continue
                guard.raise_if_stale()
                outcome = await sender.send_one(one.read, guard)
                if isinstance(outcome, Misconfigured) and not outcome.is_answer:  # the destination has not seen the hit
                    defer_others = True
                    results[one.place] = SetAsideAgain(one.hit, NOT_ASKED_PARTITION)
                    continue
                defer_others = defer_others or isinstance(outcome, Retry)
                defer_others = defer_others or (isinstance(outcome, Misconfigured) and _is_misconfigured(one.hit))
                accepted_others = sender.seconds_since_healthy < self._wall_clock() - one.written_at
                results[one.place] = self._result_of(limits, one.hit, outcome, accepted_others)

        _raise_first_error(await asyncio.gather(*(send() for _ in range(_MAX_IN_FLIGHT)), return_exceptions=True))

    def _result_of(
        self, limits: GiveUpLimits, hit: SetAsideHit, outcome: Outcome, accepted_others: bool
    ) -> RetryResult:
        """Return the result of a hit that was sent with `outcome`.

        If the destination `accepted_others` while this hit waited, the refusal is the hit's own fault, and its next wait is longer.
        Otherwise the wait stays short, so that a repaired connection gets its hits soon.
        """
        if not isinstance(outcome, Misconfigured | Retry):
            return Finished(outcome, hit)
        asked, text = hit.asked + 1, outcome.message if isinstance(outcome, Misconfigured) else outcome.reason
        message = f"{text}: {outcome.said}" if outcome.said else text
        is_misconfigured = _is_misconfigured(hit)
        if self._is_given_up(limits, hit, is_misconfigured, accepted_others):
            setting = "give_up_misconfigured_after" if is_misconfigured else "give_up_after"
            reason = f"set aside and not accepted within {setting}; sent {asked} times, the last failure: {message}"
            return Finished(Rejected("gave_up", reason), hit)
        again = replace(hit, asked=asked, message=message)
        is_own_fault = accepted_others and not is_misconfigured
        return SetAsideAgain(again, again.next_partition if is_own_fault else NOT_ASKED_PARTITION)

    def _is_given_up(
        self, limits: GiveUpLimits, hit: SetAsideHit, is_misconfigured: bool, accepted_others: bool
    ) -> bool:
        """Return whether a hit that was refused again has waited for the configured time.

        Unless the destination accepted others, this process must also have run for that long: it does not know what happened
        before its start, and soon after the start it does not know yet which connections are misconfigured.
        """
        # Like the hits on the topic of a misconfigured connection, this one waits for the operator.
        limit = limits.give_up_misconfigured_after_seconds if is_misconfigured else limits.give_up_after_seconds
        if limit is None or self._wall_clock() - hit.since_ms / 1000 < limit:
            return False
        return accepted_others or is_misconfigured or self._wall_clock() - self._started_at >= limit

    def _forget(self, settled: Batch) -> None:
        self._faulty.discard(settled)
        for tp, records in settled.records.items():
            for record in records:
                self._uncommitted.pop((tp, record.offset() or 0), None)


def _raise_first_error(results: Sequence[BaseException | None]) -> None:
    """Raise the first error except StaleBatch, after which the hits that were not sent have no result."""
    for error in results:
        if error is not None and not isinstance(error, StaleBatch):
            raise error


def _is_misconfigured(hit: SetAsideHit) -> bool:
    """Return whether the connection is misconfigured, as far as this process knows."""
    waiting = WAITING.connections.get(hit.connection)
    return waiting is not None and waiting.misconfigured


def _settled_count(results: Sequence[RetryResult | None]) -> int:
    return next((count for count, result in enumerate(results) if result is None), len(results))
