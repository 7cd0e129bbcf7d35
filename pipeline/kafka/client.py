"""What every client of ours shares: librdkafka's properties, its log, and what a failure says."""

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
            record.msg, record.args = f"{record.getMessage()} (and {held_back} times more since)", ()
        return True


_ACKNOWLEDGED: dict[str, Any] = {"acks": "all", "enable.idempotence": True, "message.timeout.ms": 2500}
_OURS = frozenset(
    {
        *("bootstrap.servers", "metadata.broker.list"),
        *("acks", "request.required.acks", "enable.idempotence", "message.timeout.ms", "delivery.timeout.ms"),
        *("transactional.id", "partitioner", "isolation.level", "auto.offset.reset", "group.id", "group.protocol"),
        *("enable.auto.commit", "enable.auto.offset.store", "partition.assignment.strategy"),
    }
)
"""What the promise of the README rests on: with `acks: 0` a 204 would mean nothing."""

_log = logging.getLogger(f"{__name__}.librdkafka")
_log.addFilter(RepeatFilter())


def client_properties(kafka: KafkaConfig, **properties: Any) -> dict[str, Any]:
    """Properties for one client: ours, then `properties` (dots as `__`), then the operator's `kafka.client`.

    What librdkafka logs waits for the client's next `poll` or `consume`.
    """
    base: dict[str, Any] = {
        "bootstrap.servers": kafka.servers,
        "logger": _log,
        "log.connection.close": False,
        "socket.keepalive.enable": True,
        # A broker that is back after a restart is found again at once.
        "reconnect.backoff.ms": 200,
        "reconnect.backoff.max.ms": 1000,
        # New partitions are read, and keys go to their new partitions, within this time (default 5 minutes).
        "topic.metadata.refresh.interval.ms": 10_000,
    }
    return base | {key.replace("__", "."): value for key, value in properties.items()} | kafka.client


def property_problems(client: Mapping[str, Property]) -> Iterator[tuple[str, str]]:
    """What is wrong with the operator's properties: the name of one ("" for all together), and why."""
    ours = sorted(_OURS & client.keys())
    for name in ours:
        yield name, "hitrouter sets it itself, because its promise rests on it; take it out"
    if ours or not client:
        return
    try:
        # Without a server it connects to nothing, and what it logs is never polled.
        Producer({"logger": _log, **_ACKNOWLEDGED, **client})
    except (KafkaException, ValueError, TypeError) as error:
        said = error.args[0]
        text = said.str() if isinstance(said, KafkaError) else str(said)
        yield "", text.removeprefix("Failed to create producer: ").strip()


def reaches_kafka(client: Producer | AdminClient) -> bool:
    """Does a broker answer within a second? May be called from any thread while another call blocks."""
    try:
        client.list_topics(timeout=1.0)
    except KafkaException:
        return False
    return True


def unavailable(kafka: KafkaConfig, what: str, error: KafkaException) -> BrokerUnavailable:
    """Return the error that says what could not be read, where, and why.

    An error keeps the frames that it passed, and a frame or a future the error: the client of an earlier failure hangs in such
    a cycle, with four threads and as many MB. Roles collect garbage so seldom (garbage.py) that in an outage, where they ask
    again and again, nothing else would free it.
    """
    gc.collect()
    return BrokerUnavailable(
        f"{what} could not be read from Kafka at {kafka.servers}: {error.args[0].str()}; is it running?"
    )


@contextlib.contextmanager
def answering(kafka: KafkaConfig, what: str) -> Iterator[None]:
    """Raises BrokerUnavailable, which names `what`, when Kafka does not answer within the block."""
    try:
        yield
    except KafkaException as error:
        raise unavailable(kafka, what, error) from error
