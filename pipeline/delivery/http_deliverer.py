"""From records of a deliveries topic to requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from faust.types import TP

from pipeline.config.models import ConnectionConfig
from pipeline.delivery.age import too_old
from pipeline.delivery.answers import read_answer, said_by, with_said
from pipeline.delivery.attempts import Attempts
from pipeline.delivery.batching import lanes_of, too_large
from pipeline.delivery.deliverers import ReadHit, Received, ages_of, attempts_of, by_partition, event_of
from pipeline.delivery.lanes import Guard
from pipeline.delivery.refusals import FinalOutcome
from pipeline.delivery.settled import SettledOutcomes
from pipeline.destination import (
    Destination,
    Event,
    Http,
    HttpResponse,
    Outcome,
    Rejected,
    Retry,
    Settings,
    Skipped,
    Verdict,
)
from pipeline.redaction import Redaction

if TYPE_CHECKING:
    from pipeline.sinks.http import HttpSink

logger = logging.getLogger("hitrouter.deliver")

_BATCHES_KEPT = 4


class HttpDeliverer:
    """For destinations with an http sink."""

    def __init__(
        self,
        name: str,
        connection: ConnectionConfig,
        destination: Destination,
        sink: Http,
        settings: Settings,
    ) -> None:
        self._name = name
        self._connection = connection
        self._destination = destination
        self._http = sink
        self._settings = settings
        self._settled = SettledOutcomes(_BATCHES_KEPT * connection.delivery.max_in_flight * sink.limits.events)
        self._redaction = Redaction.of(settings)
        self._sink: HttpSink | None = None
        self._is_closed = False
        self._attempts: Attempts[Event] | None = None

    def forget(self) -> None:
        """Keep the outcomes: if another worker has gone on, its committed offsets are beyond them."""

    async def close(self) -> None:
        """Close the HTTP connections."""
        self._is_closed = True
        if self._sink is not None:
            await self._sink.close()

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[FinalOutcome | None]]:
        """Send every hit, and wait for those that must be tried again."""
        events = [
            self._settled.recall(tp, record) or self._event(read)
            for tp, part in received.items()
            for record, read in part
        ]
        keys = [record.key() or record.offset() for part in received.values() for record, _ in part]
        lanes, refused = lanes_of(events, keys, self._http.limits, self._connection.delivery.max_in_flight)
        for position, rejected in refused.items():
            events[position] = rejected
        outcomes = by_partition(await self._started().deliver(events, lanes, guard, ages_of(received)), received)
        for tp, part in received.items():
            self._settled.keep(tp, [record for record, _ in part], outcomes[tp])
        return outcomes

    @property
    def seconds_since_answer(self) -> float:
        """How long ago the destination took a hit, or refused one for a reason of the hit's own."""
        return self._started().seconds_since_answer

    @property
    def is_down(self) -> bool:
        """Does the connection wait for its destination, and is no request due yet?"""
        return self._started().is_down

    async def ask(self, read: ReadHit, guard: Guard) -> Outcome:
        """Ask the destination once for one hit, beside the lanes; used for hits that were set aside. Raises StaleBatch."""
        event = self._event(read)
        if not isinstance(event, Event):
            return event
        return too_large(event, self._http.limits) or await self._started().ask(event, guard)

    def _event(self, read: ReadHit | Rejected) -> Event | Skipped | Rejected:
        if isinstance(read, Rejected):
            return read
        return event_of(self._destination, self._http, read, self._settings)

    async def _send(self, events: Sequence[Event]) -> Verdict:
        assert self._sink is not None
        if self._is_closed:
            return Retry("closed")
        try:
            request = self._http.request(events, self._settings, time.time())
        except Exception as error:
            logger.exception("the request of %s failed", self._destination.name)
            return Rejected("transform_failed", repr(error))
        answer = await self._sink.send(request)
        if not isinstance(answer, HttpResponse):
            return answer
        verdict = read_answer(self._destination.name, self._http, answer, events)
        return with_said(verdict, lambda: said_by(answer, self._redaction.with_request(request)))

    def _too_old(self, event: Event) -> Rejected | None:
        return too_old(event, self._http.limits, time.time())

    def _started(self) -> Attempts[Event]:
        if self._attempts is None:
            delivery = self._connection.delivery
            from pipeline.sinks.http import HttpSink  # kinds.py has imported it

            self._sink = HttpSink(delivery.max_in_flight, delivery.allow_private)
            self._attempts = attempts_of(
                self._name,
                delivery,
                self._redaction,
                self._send,
                delivery.max_in_flight,
                self._http.limits.per_second,
                None if self._http.limits.oldest_seconds is None else self._too_old,
                sets_aside=True,
            )
        return self._attempts
