"""One librdkafka producer, with a thread for its blocking calls so that a call that never returns can be abandoned."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from pipeline.kafka.daemon_thread import DaemonThread
from pipeline.kafka.patience import OUTAGES
from pipeline.kafka.reachability import unreachable
from pipeline.kafka.slot_state import Probe

_PROBE_SECONDS = 1.0


class ProducerInstance:
    """Owns one Producer. `producer` may be used by the thread that holds the transaction."""

    def __init__(self, properties: dict[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.outage_at = float("-inf")
        """On `clock`: when Kafka was last found to be unreachable."""
        # With an `error_cb`, confluent_kafka raises a fatal error from `poll`; without one it would only be logged.
        self.producer = Producer({**properties, "error_cb": self._failed})
        self._thread = DaemonThread("transaction calls")

    def call(self, name: str, *arguments: Any) -> Future[Any]:
        """Start a blocking call of the producer. `flush` fails with a retriable time-out while records are under way."""
        return self._thread.submit(_call, getattr(self.producer, name), *arguments)

    def serve(self) -> None:
        """Serve librdkafka's log and error callbacks; does not block."""
        with suppress(KafkaException):  # the call that failed says it, too
            self.producer.poll(0)

    def probe(self) -> Probe:
        """Ask any broker for metadata; blocks up to a second. May be called while another call blocks."""
        self.serve()
        try:
            self.producer.list_topics(timeout=_PROBE_SECONDS)
        except KafkaException as error:
            # librdkafka: _TRANSPORT when no broker is connected, _TIMED_OUT when one is and does not answer.
            if error.args[0].code() not in OUTAGES:
                return Probe.SILENT
            self.outage_at = self._clock()
            return Probe.UNREACHABLE
        return Probe.ANSWERS

    def unreachable(self, topic: str) -> str | None:
        """Why nothing can be written to `topic` now; None when it can. Blocks; any thread may call."""
        producer: Producer | None = getattr(self, "producer", None)
        return "the producer is being replaced" if producer is None else unreachable(producer, topic)

    def retire(self, hangs: bool) -> None:
        """Give the instance up; with `hangs` its thread is abandoned inside a call. Returns at once.

        The producer is destroyed by its own thread, because that blocks. A hanging one is destroyed when its call returns: closing
        it from outside would free memory that the call still uses.
        """
        self._thread.submit(_destroy, [self.producer])
        if hangs:
            self._thread.abandon()
        else:
            self._thread.stop()
        del self.producer

    def _failed(self, error: KafkaError) -> None:
        # Not _TRANSPORT: a broker also closes connections that are idle.
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.outage_at = self._clock()


def _call(method: Callable[..., int | None], *arguments: Any) -> None:
    # All calls return None, but `flush` the number of records that are under way.
    if left := method(*arguments):
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{left} records are not acknowledged", retriable=True))


def _destroy(producers: list[Producer]) -> None:
    """Drop the last reference."""
    producers.clear()
