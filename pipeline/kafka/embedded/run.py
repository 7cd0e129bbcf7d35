"""The kafka role: the embedded broker in the foreground."""

from __future__ import annotations

import logging
import signal
import threading

from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.embedded.broker import EmbeddedBroker

logger = logging.getLogger("hitrouter.kafka")


def run(kafka: KafkaConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises BrokerUnavailable when it can't start or ends by itself."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    broker = EmbeddedBroker(kafka.listen, kafka.data)
    broker.start()
    logger.info("ready: Apache Kafka on %s, data in %s", kafka.listen, kafka.data)
    assert broker.process is not None
    try:
        while not stopping.wait(0.2):
            if broker.process.poll() is not None:
                raise BrokerUnavailable(broker.failure())
    finally:
        broker.stop()
    logger.info("stopped")
