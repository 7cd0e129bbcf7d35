"""The Faust transport, which names the consumer class and a producer that does nothing."""

from __future__ import annotations

import logging
from typing import Any

from faust.app import App
from faust.transport import base
from faust.transport.producer import Producer as FaustProducer

from pipeline.kafka.transport.consumer import TransactionalConsumer
from pipeline.kafka.transport.settings import TransportSettings


class _NoProducer(FaustProducer):
    """Does nothing: outputs go through the batch's transaction, never through Faust's producer."""

    logger = logging.getLogger("mode")

    async def flush(self) -> None:
        pass

    async def create_topic(self, *arguments: Any, **options: Any) -> None:
        pass


class Transport(base.Transport):
    """The transport that `build_app` sets as `app.transport`."""

    Consumer = TransactionalConsumer
    Producer = _NoProducer
    default_port = 9092
    driver_version = "hitrouter-transactional"

    def __init__(self, app: App, settings: TransportSettings) -> None:
        super().__init__([], app)
        self.settings = settings
