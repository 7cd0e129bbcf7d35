"""One librdkafka producer with a thread for its blocking calls, so that a call that never returns can be abandoned."""

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
    """Owns one Producer. Only the thread that runs the transaction may use `producer` directly."""

    def __init__(self, properties: dict[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.outage_at = float("-inf")
        """Time on `clock` at which Kafka was last unreachable."""
        # With an `error_cb`, confluent_kafka raises fatal errors from `poll`; without one it only logs them.
        self.producer = Producer({**properties, "error_cb": self._failed})
        self._thread = DaemonThread("transaction calls")

    def call(self, name: str, *arguments: Any) -> Future[Any]:
        """Start a blocking call of the producer. `flush` fails with a retriable timeout while records are in flight."""
        return self._thread.submit(_call, getattr(self.producer, name), *arguments)

    def serve(self) -> None:
        """Run librdkafka's log and error callbacks. Does not block."""
        with suppress(KafkaException):  # the failed call raises the same error
            self.producer.poll(0)

    def probe(self) -> Probe:
        """Request metadata from any broker. Blocks up to a second; may run while another call blocks."""
        self.serve()
        try:
            self.producer.list_topics(timeout=_PROBE_SECONDS)
        except KafkaException as error:
            # librdkafka: _TRANSPORT if no broker is connected, _TIMED_OUT if a connected broker does not respond.
            if error.args[0].code() not in OUTAGES:
                return Probe.SILENT
            self.outage_at = self._clock()
            return Probe.UNREACHABLE
        return Probe.RESPONDS

    def unreachable(self, topic: str) -> str | None:
        """Return why nothing can be written to `topic` now, or None. Blocks; any thread may call it."""
        producer: Producer | None = getattr(self, "producer", None)
        return "the producer is being replaced" if producer is None else unreachable(producer, topic)

    def retire(self, hangs: bool) -> None:
        """Discard the instance; with `hangs`, abandon its thread. Returns at once.

        The instance's own thread destroys the producer, since that blocks. With a hanging call, this happens when the call
        returns: destroying the producer earlier would free memory that the call still uses.
        """
        self._thread.submit(_destroy, [self.producer])
        if hangs:
            self._thread.abandon()
        else:
            self._thread.stop()
        del self.producer

    def _failed(self, error: KafkaError) -> None:
        # Not _TRANSPORT: brokers also close idle connections.
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.outage_at = self._clock()


def _call(method: Callable[..., int | None], *arguments: Any) -> None:
    # `flush` returns the number of records in flight; all other calls return None.
    if left := method(*arguments):
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{left} records are not acknowledged", retriable=True))


def _destroy(producers: list[Producer]) -> None:
    """Drop the last reference, which destroys the producer."""
    producers.clear()
