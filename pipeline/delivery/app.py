"""The deliver role as Faust apps: deliver a batch first, then move its offsets in one transaction with its dead letters."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import faust
from faust.types import TP

from pipeline.codec.avro import Framing
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.config import Config, ConnectionConfig, Watched
from pipeline.config.addresses import admin_address
from pipeline.delivery.deliver_batch import deliver_batch
from pipeline.delivery.deliverers import Deliverer, RoutedHits
from pipeline.delivery.http_deliverer import HttpDeliverer
from pipeline.delivery.kinds import import_clients, kind_of
from pipeline.delivery.pauses import tell_pauses
from pipeline.delivery.sending import SendingDeliverer
from pipeline.delivery.set_aside_app import build_set_aside_app, http_connections, key_of
from pipeline.destination import Http
from pipeline.errors import HitrouterError
from pipeline.garbage import freeze_startup_objects
from pipeline.kafka.lost_offsets import recover_from_ledger
from pipeline.kafka.retention import follow_retention
from pipeline.kafka.schema_registry import SchemaRegistry
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.topics.declared import SET_ASIDE_MEMBER
from pipeline.kafka.transport.app import batch_agent, build_app
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.kafka.transport.faulty import FaultyRecords
from pipeline.kafka.transport.run import Wanted, run_apps
from pipeline.kafka.transport.settings import TransportSettings
from pipeline.kafka.transport.watch import MemberListener
from pipeline.kafka.worker_health import WorkerHealth
from pipeline.registry import declared_destinations, read_settings
from pipeline.telemetry.admin import admin_endpoint
from pipeline.telemetry.backlog import OLDEST
from pipeline.telemetry.health import Health
from pipeline.telemetry.readiness import State, refused_file
from pipeline.telemetry.waiting import WAITING

logger = logging.getLogger("hitrouter.deliver")

_PREFETCH_KBYTES, _FETCH_BYTES = 16_384, 131_072
"""Prefetch limits per connection; a full backlog holds about 40 MB instead of over 100."""
_GRACE_SECONDS = 6.0
"""A rebalance waits this long for requests in flight, so that their outcomes are committed and nobody repeats them."""
_TOPICS_PAUSE_SECONDS = 5.0
_BEAT_SECONDS = 1.0
_THREADS = 256
"""Made as they are needed; a connection blocks one at most."""


class _Forgetting:
    """Tells the deliverer that the partitions have changed; another worker may get them, and knows better then who waits."""

    def __init__(self, connection: str, deliverer: Deliverer) -> None:
        self._connection = connection
        self._deliverer = deliverer

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        return self._deliverer.forget

    def revoked(self) -> None:
        WAITING.end(self._connection)
        self._deliverer.forget()


Running = dict[str, HttpDeliverer]
"""By connection the deliverers that this process runs for HTTP destinations."""


def wanted_apps(
    config: Config, slot: int, workers: WorkerHealth | None = None, running: Running | None = None
) -> Wanted:
    """One app per connection that has a sink, and one for the hits that HTTP connections have set aside.

    `workers` learns how each fares, and `running` holds the deliverers that the latter asks.
    """
    names = TopicNames(config.kafka.topic_prefix)
    kinds = declared_destinations()
    workers = workers or WorkerHealth(Health("deliver", slot))
    running = {} if running is None else running
    wanted: dict[str, tuple[Hashable, Callable[[], faust.App]]] = {
        name: (
            connection.model_dump_json(),
            partial(_build_app, config, names, name, connection, slot, workers, running),
        )
        for name, connection in config.connections.items()
        if kinds[connection.destination].sink is not None
    }
    if http_connections(config):
        wanted[SET_ASIDE_MEMBER] = (key_of(config), partial(build_set_aside_app, config, slot, workers, running))
    workers.want(wanted)
    return wanted


def _build_app(
    config: Config,
    names: TopicNames,
    name: str,
    connection: ConnectionConfig,
    slot: int,
    workers: WorkerHealth,
    running: Running,
) -> faust.App:
    destination, settings = read_settings(connection)
    sink = destination.sink
    assert sink is not None
    topic = names.deliveries(name)
    registry = config.kafka.schema_registry
    hits = RoutedHits(SchemaRegistry(registry).reading(ROUTED_HIT_SCHEMA) if registry else Framing(ROUTED_HIT_SCHEMA))
    repeats_matter = isinstance(sink, Http)
    deliverer, batch_records, linger_seconds = kind_of(name, topic, connection, destination, sink, settings)
    if isinstance(deliverer, HttpDeliverer):
        running[name] = deliverer
    watched_member = workers.member(name, topic)
    member = watched_member.member
    app = build_app(
        TransportSettings(
            config.kafka,
            f"{names.prefix}deliver-{name}",
            slot,
            MemberListener(_Forgetting(name, deliverer), member),
            batch_records,
            linger_seconds,
            wait_for_agents=False,
            prefetch_kbytes=_PREFETCH_KBYTES,
            fetch_bytes=_FETCH_BYTES,
            grace_seconds=_GRACE_SECONDS,
            watch=watched_member.watch,
            recover=recover_from_ledger(config.kafka, names.ledger, "deliver"),
        )
    )

    oldest = OLDEST.open(topic, name)
    sending = SendingDeliverer(deliverer, member)
    faulty = FaultyRecords()

    async def deliver(batch: Batch, consumer: BatchConsumer) -> None:
        with oldest.in_progress(batch.oldest_ms):
            await deliver_batch(name, names, hits, sending, batch, consumer, repeats_matter, faulty)

    async def close(*_: object, **__: object) -> None:
        await app.consumer.settle()
        WAITING.deregister(name)
        OLDEST.close(topic)
        member.joining(time.monotonic())
        if running.get(name) is deliverer:
            del running[name]
        await deliverer.close()

    WAITING.register(name)
    app.on_before_shutdown.connect(close, weak=False)
    batch_agent(app, f"deliver-{name}", topic, deliver)
    return app


def make_room_for_stalled_sinks() -> None:
    """asyncio's own threads are few on a small machine: as many sinks that hang would keep all others from resolving a name."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "deliver"))


def run_deliver(watched: Watched, slot: int = 0) -> None:
    """Deliver until SIGTERM; connections that come, go or change are taken over."""
    health = Health("deliver", slot)
    health.readiness.add(refused_file(lambda: watched.refused))
    health.readiness.add(WAITING.conditions)
    # Hits that are set aside wait on purpose, each for its time.
    workers = WorkerHealth(health, excused=lambda name: name == SET_ASIDE_MEMBER or name in WAITING.connections)
    with admin_endpoint(health, admin_address(watched.config.admin.listen, "deliver", slot)), workers.watching():
        _run(watched, slot, workers)


def _run(watched: Watched, slot: int, workers: WorkerHealth) -> None:
    health = workers.health
    ensure_topics(watched.config)
    import_clients(watched.config)
    running: Running = {}
    wanted = wanted_apps(watched.config, slot, workers, running)
    health.started()
    if not wanted:
        logger.warning("no connection has a sink; there is nothing to deliver yet")

    async def follow() -> Wanted | None:
        changed = await asyncio.to_thread(watched.changed)
        if changed is None:
            return None
        await asyncio.to_thread(import_clients, changed)
        while True:
            changed = await asyncio.to_thread(watched.changed) or changed
            try:
                await asyncio.to_thread(ensure_topics, changed)
                apps = wanted_apps(changed, slot, workers, running)
                health.readiness.end("configuration", State.REFUSED)
                return apps
            except HitrouterError as error:
                logger.error("version %s does not deliver yet: %s", changed.version, error)
                reason = f"version {changed.version} does not deliver yet: {error}"
                health.readiness.begin("configuration", State.REFUSED, reason, time.monotonic())
                await asyncio.sleep(_TOPICS_PAUSE_SECONDS)

    async def beat(stopped: Callable[[], bool]) -> None:
        while not stopped():
            health.liveness.beat(time.monotonic())
            await asyncio.sleep(_BEAT_SECONDS)

    async def beside(stopped: Callable[[], bool]) -> None:
        health.stops_when(stopped)
        make_room_for_stalled_sinks()
        await asyncio.gather(
            beat(stopped),
            tell_pauses(stopped, watched.config, WAITING),
            follow_retention(stopped, watched.config.kafka, OLDEST),
        )

    freeze_startup_objects()
    run_apps(wanted, follow, beside)
