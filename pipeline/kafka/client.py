"""Properties, logging and error messages that all Kafka clients of this project share."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from pipeline.config.models import KafkaConfig
from pipeline.config.values import Property
from pipeline.errors import BrokerUnavailable

_REPEATED_SECONDS = 30.0
_KINDS = 256


class RepeatFilter(logging.Filter):
    """Passes each message once in 30 s: during an outage librdkafka repeats its messages ten times a second.

    Messages that differ only in their digits count as the same one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = re.sub(r"\d+", "0", record.getMessage()), time.monotonic()
        shown, held_back = self._shown.get(kind, (-_REPEATED_SECONDS, 0))
        if now - shown < _REPEATED_SECONDS:
            self._shown[kind] = (shown, held_back + 1)
            return False
        if len(self._shown) >= _KINDS:
            self._shown.clear()
        self._shown[kind] = (now, 0)
        if held_back:
            record.msg = f"{record.msg} (and {held_back} times more since)"
        return True


_ACKNOWLEDGED: dict[str, Any] = {"acks": "all", "enable.idempotence": True, "message.timeout.ms": 2500}
_RESERVED = frozenset(
    {
        *("bootstrap.servers", "metadata.broker.list"),
        *("acks", "request.required.acks", "enable.idempotence", "message.timeout.ms", "delivery.timeout.ms"),
        *("transactional.id", "partitioner", "isolation.level", "auto.offset.reset", "group.id", "group.protocol"),
        *("enable.auto.commit", "enable.auto.offset.store", "partition.assignment.strategy"),
    }
)
"""Properties that the delivery guarantee in the README depends on: with `acks: 0`, a 204 would guarantee nothing."""

_log = logging.getLogger(f"{__name__}.librdkafka")
_log.addFilter(RepeatFilter())


def client_properties(kafka: KafkaConfig, **properties: Any) -> dict[str, Any]:
    """Return the properties of one client: defaults, then `properties` (dots as `__`), then the operator's `kafka.client`.

    librdkafka's log messages are delivered by the client's next `poll` or `consume`.
    """
    base: dict[str, Any] = {
        "bootstrap.servers": kafka.servers,
        "logger": _log,
        "log.connection.close": False,
        "socket.keepalive.enable": True,
        # Reconnect soon after a broker restart.
        "reconnect.backoff.ms": 200,
        "reconnect.backoff.max.ms": 1000,
        # New partitions are used within this time (default 5 minutes).
        "topic.metadata.refresh.interval.ms": 10_000,
    }
    return base | {key.replace("__", "."): value for key, value in properties.items()} | kafka.client


def property_problems(client: Mapping[str, Property]) -> Iterator[tuple[str, str]]:
    """Yield (property name, problem) for the operator's properties; the name is "" if librdkafka rejects them as a whole."""
    reserved = sorted(_RESERVED & client.keys())
    for name in reserved:
        yield name, "hitrouter sets this property itself, because its delivery guarantee depends on it; remove it"
    if reserved or not client:
        return
    try:
        # Without a server, the producer connects to nothing. Its log messages are never polled.
        Producer({"logger": _log, **_ACKNOWLEDGED, **client})
    except (KafkaException, ValueError, TypeError) as error:
        cause = error.args[0]
        text = cause.str() if isinstance(cause, KafkaError) else str(cause)
        yield "", text.removeprefix("Failed to create producer: ").strip()


def reaches_kafka(client: Producer | AdminClient) -> bool:
    """Return whether a broker responds within a second. Any thread may call it, also while another call blocks."""
    try:
        client.list_topics(timeout=1.0)
    except KafkaException:
        return False
    return True


def unavailable(kafka: KafkaConfig, what: str, error: KafkaException) -> BrokerUnavailable:
    """Return a BrokerUnavailable error. Its text says that `what` could not be read, from which servers, and why.

    Collects garbage first. A traceback references the frames it passed, and these reference the error, so the client of
    an earlier failure survives in a reference cycle, with four threads and about 4 MB. Roles collect garbage rarely
    (garbage.py), so without this call the clients of repeated failures would pile up during an outage.
    """
    gc.collect()
    return BrokerUnavailable(
        f"{what} could not be read from Kafka at {kafka.servers}: {error.args[0].str()}; check that it is running"
    )


@contextlib.contextmanager
def unavailable_on_error(kafka: KafkaConfig, what: str) -> Iterator[None]:
    """Turn a KafkaException in the block into BrokerUnavailable, which names `what`."""
    try:
        yield
    except KafkaException as error:
        raise unavailable(kafka, what, error) from error
