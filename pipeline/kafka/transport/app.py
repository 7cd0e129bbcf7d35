"""Builds Faust apps on the transactional transport."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import faust
import mode

from pipeline.errors import StaleBatch
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.kafka.transport.driver import Transport
from pipeline.kafka.transport.settings import TransportSettings

BatchHandler = Callable[[Batch, BatchConsumer], Awaitable[None]]


def build_app(settings: TransportSettings) -> faust.App:
    """Return a Faust app whose agents receive batches. A process may build several."""
    app = faust.App(
        settings.group,
        broker="kafka://unused",
        datadir=tempfile.gettempdir(),
        web_enabled=False,
        autodiscover=False,
        key_serializer="raw",
        value_serializer="raw",
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_wait_empty=settings.wait_for_agents,
        stream_buffer_maxsize=16,
        worker_redirect_stdouts=False,
        agent_supervisor=mode.CrashingSupervisor,
    )
    transport = Transport(app, settings)
    app.transport = transport
    app.producer_transport = transport
    return app


def batch_agent(app: faust.App, name: str, topic: str, handle: BatchHandler) -> Any:
    """Declare the agent that calls `handle(batch, consumer)` for each batch of `topic`."""
    channel = app.topic(topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

    @app.agent(channel, name=name)
    async def agent(batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            await process(batch, app.consumer, handle)

    return agent


async def process(batch: Batch, consumer: BatchConsumer, handle: BatchHandler) -> None:
    """Handle one batch; pass unexpected exceptions to `consumer.failed`. A stale batch is dropped."""
    try:
        await handle(batch, consumer)
    except StaleBatch:
        pass
    except Exception as error:
        consumer.failed(batch, error)
