"""Runs the kafka role: the embedded broker in the foreground."""

from __future__ import annotations

import logging
import threading

from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.embedded.broker import EmbeddedBroker
from pipeline.kafka.embedded.jars import fetch_jars
from pipeline.process.stop import SIGNALS

logger = logging.getLogger(__name__)


def run(kafka: KafkaConfig) -> None:
    """Run until a stop signal. Raises BrokerUnavailable if the broker cannot start or ends unexpectedly."""
    fetch_jars()  # before the signal handlers: a signal ends a download at once
    stopping = threading.Event()
    broker = EmbeddedBroker(kafka.listen, kafka.data)
    with SIGNALS.running(stopping.set):
        try:
            broker.start(given_up=stopping)
            if not stopping.is_set():
                logger.info("kafka ready: address=%s data=%s", kafka.listen, kafka.data)
            while not stopping.wait(0.2):
                if broker.process is None or broker.process.poll() is not None:
                    raise BrokerUnavailable(broker.failure())
        finally:
            broker.stop()
