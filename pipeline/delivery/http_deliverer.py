"""Delivers the records of a deliveries topic as HTTP requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from faust.types import TP

from pipeline.config.models import ConnectionConfig
from pipeline.delivery.age import too_old
from pipeline.delivery.answers import read_verdict, response_text, with_response_text
from pipeline.delivery.attempts import Attempts
from pipeline.delivery.batching import lanes_of, too_large
from pipeline.delivery.deliverers import ReadHit, Received, build_attempts, event_of, record_ages, split_by_partition
from pipeline.delivery.lanes import Guard
from pipeline.delivery.redaction import Redaction
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

if TYPE_CHECKING:
    from pipeline.sinks.http import HttpSink

logger = logging.getLogger(__name__)

_BATCHES_KEPT = 4
"""Batches whose settled outcomes are kept until they are committed."""


class HttpDeliverer:
    """The deliverer of destinations with an HTTP sink."""

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

    def reset(self) -> None:
        """Keep the outcomes: if another worker has continued, its committed offsets are beyond them."""

    async def close(self) -> None:
        """Close the HTTP connections."""
        self._is_closed = True
        if self._sink is not None:
            await self._sink.close()

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[FinalOutcome | None]]:
        """Send every hit, and repeat those that must be retried."""
        events = [
            self._settled.get(tp, record) or self._event(read) for tp, part in received.items() for record, read in part
        ]
        keys = [record.key() or record.offset() for part in received.values() for record, _ in part]
        lanes, refused = lanes_of(events, keys, self._http.limits, self._connection.delivery.max_in_flight)
        for position, rejected in refused.items():
            events[position] = rejected
        outcomes = split_by_partition(
            await self._get_attempts().deliver(events, lanes, guard, record_ages(received)), received
        )
        for tp, part in received.items():
            self._settled.keep(tp, [record for record, _ in part], outcomes[tp])
        return outcomes

    @property
    def seconds_since_healthy(self) -> float:
        """See HitSender."""
        return self._get_attempts().seconds_since_healthy

    @property
    def is_down(self) -> bool:
        """See HitSender."""
        return self._get_attempts().is_down

    async def send_one(self, read: ReadHit, guard: Guard) -> Outcome:
        """Send one hit once, outside the lanes; used for hits that were set aside. Raises StaleBatch."""
        event = self._event(read)
        if not isinstance(event, Event):
            return event
        return too_large(event, self._http.limits) or await self._get_attempts().send_one(event, guard)

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
            logger.exception("request not built: destination=%s", self._destination.name)
            return Rejected("transform_failed", repr(error))
        response = await self._sink.send(request)
        if not isinstance(response, HttpResponse):
            return response
        verdict = read_verdict(self._destination.name, self._http, response, events)
        return with_response_text(verdict, lambda: response_text(response, self._redaction.with_request(request)))

    def _too_old(self, event: Event) -> Rejected | None:
        return too_old(event, self._http.limits, time.time())

    def _get_attempts(self) -> Attempts[Event]:
        if self._attempts is None:
            delivery = self._connection.delivery
            from pipeline.sinks.http import HttpSink  # imported already, by kinds.py

            self._sink = HttpSink(delivery.max_in_flight, delivery.allow_private)
            self._attempts = build_attempts(
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
