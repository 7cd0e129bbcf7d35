"""The deliver role as Faust apps: deliver a batch first, then move its offsets in one transaction with its dead letters."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import faust
from confluent_kafka import Message
from faust.types import TP

from pipeline.codec.dead_letter import DeadLetter
from pipeline.codec.ledger_entry import Entry, LedgerEntry, encode_ledger_entry
from pipeline.config.models import Config, ConnectionConfig
from pipeline.delivery.declared import check_connections, read_settings
from pipeline.delivery.deliverers import Deliverer, FilesDeliverer, HttpDeliverer, read_routed_hit
from pipeline.destination import Delivered, Http, Outcome, Rejected, Skipped
from pipeline.errors import ConfigurationError, StaleBatch
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transport import (
    Batch,
    BatchConsumer,
    Outputs,
    TransportSettings,
    batch_agent,
    build_app,
    run_apps,
)

logger = logging.getLogger("hitrouter.deliver")

_HTTP_BATCH = 200  # what is sent again after a crash
_FILES_BATCH = 10_000
_FILES_LINGER_SECONDS = 2.0


class _Forgetting:
    """Tells the deliverer that the partitions have changed."""

    def __init__(self, deliverer: Deliverer) -> None:
        self._deliverer = deliverer

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        return self._deliverer.forget

    def revoked(self) -> None:
        self._deliverer.forget()


def build_deliver_apps(config: Config, slot: int) -> list[faust.App]:
    """One app per connection that has a sink."""
    apps = []
    names = TopicNames(config.kafka.topic_prefix)
    for name, connection in config.connections.items():
        app = _build_app(config, names, name, connection, slot)
        if app is not None:
            apps.append(app)
    return apps


def _build_app(
    config: Config, names: TopicNames, name: str, connection: ConnectionConfig, slot: int
) -> faust.App | None:
    destination, settings = read_settings(connection)
    sink = destination.sink
    if sink is None:
        return None
    topic = names.deliveries(name)
    deliverer: Deliverer
    if isinstance(sink, Http):
        deliverer = HttpDeliverer(name, connection, sink, settings)
        batch_records, linger_seconds = _HTTP_BATCH, 0.05
    else:
        deliverer = FilesDeliverer(name, topic, sink, settings)
        batch_records, linger_seconds = _FILES_BATCH, _FILES_LINGER_SECONDS
    app = build_app(
        TransportSettings(
            config.kafka,
            f"{names.prefix}deliver-{name}",
            slot,
            _Forgetting(deliverer),
            batch_records,
            linger_seconds,
            wait_for_agents=False,
        )
    )

    async def deliver(batch: Batch, consumer: BatchConsumer) -> None:
        def keep_on() -> None:
            if batch.epoch != consumer.epoch or consumer.should_stop:
                raise StaleBatch(f"{name}: the partitions of this batch are gone")

        outcomes = await deliverer.deliver(batch.records, keep_on)
        async with consumer.transaction(batch) as outputs:
            for tp, records in batch.records.items():
                write_outcomes(outputs, names, name, tp, records, outcomes[tp], batch.next_offsets[tp])

    async def close(*_: object, **__: object) -> None:
        await deliverer.close()

    app.on_before_shutdown.connect(close, weak=False)
    batch_agent(app, f"deliver-{name}", topic, deliver)
    return app


def write_outcomes(
    outputs: Outputs,
    names: TopicNames,
    connection: str,
    tp: TP,
    records: Sequence[Message],
    outcomes: Sequence[Outcome],
    next_offset: int,
) -> None:
    """The dead letters and the ledger entry of one partition."""
    counts: Counter[Entry] = Counter()
    now_ms = round(time.time() * 1000)
    for record, outcome in zip(records, outcomes, strict=True):
        hit = read_routed_hit(record.value())
        project = "" if isinstance(hit, Rejected) else hit.projectId
        if isinstance(outcome, Delivered):
            counts[Entry(project, connection, "delivered")] += 1
        elif isinstance(outcome, Skipped):
            counts[Entry(project, connection, "skipped", outcome.reason)] += 1
        elif isinstance(outcome, Rejected):
            counts[Entry(project, connection, "dead", outcome.reason)] += 1
            letter = DeadLetter(
                "deliver",
                outcome.reason,
                outcome.message,
                tp.topic,
                tp.partition,
                record.offset() or 0,
                now_ms,
                connection,
                project,
            )
            outputs.produce(names.dead_letters, record.value(), record.key(), headers=letter.headers())
    entry = LedgerEntry("deliver", tp.topic, tp.partition, records[0].offset() or 0, next_offset, now_ms, counts)
    outputs.produce(names.ledger, encode_ledger_entry(entry), connection.encode())


def run_deliver(config: Config, slot: int = 0) -> None:
    """Deliver until SIGTERM."""
    check_connections(config)
    apps = build_deliver_apps(config, slot)
    if not apps:
        raise ConfigurationError(["no connection has a sink; there is nothing to deliver"])
    ensure_topics(config)
    run_apps(apps)
