"""What every client of ours shares: librdkafka's properties, its log, and what a failure says."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import KafkaException, Producer

from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable

_REPEATED_SECONDS = 30.0
_KINDS = 256


class OnceInAWhile(logging.Filter):
    """While Kafka is away librdkafka says so ten times a second; once in half a minute is enough. Numbers make no difference."""

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


_log = logging.getLogger("hitrouter.kafka.librdkafka")
_log.addFilter(OnceInAWhile())


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
    }
    return base | {key.replace("__", "."): value for key, value in properties.items()} | kafka.client


def reaches_kafka(producer: Producer) -> bool:
    """Does a broker answer within a second? May be called from any thread while another call blocks."""
    try:
        producer.list_topics(timeout=1.0)
    except KafkaException:
        return False
    return True


def unavailable(kafka: KafkaConfig, what: str, error: KafkaException) -> BrokerUnavailable:
    """That `what` can't be had, why, and where it was looked for."""
    return BrokerUnavailable(
        f"{what} can't be had from Kafka at {kafka.servers}: {error.args[0].str()}; is it running?"
    )


@contextlib.contextmanager
def answering(kafka: KafkaConfig, what: str) -> Iterator[None]:
    """Raises BrokerUnavailable, with `what` can't be had, when Kafka does not answer within the block."""
    try:
        yield
    except KafkaException as error:
        raise unavailable(kafka, what, error) from error
