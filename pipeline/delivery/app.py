"""The Faust apps of the deliver role. Each delivers a batch, then commits its offsets and dead letters in one transaction."""

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
from pipeline.delivery.kinds import build_deliverer, import_clients
from pipeline.delivery.monitored_deliverer import MonitoredDeliverer
from pipeline.delivery.pauses import record_pauses
from pipeline.delivery.set_aside_app import build_set_aside_app, http_connections, rebuild_key
from pipeline.destination import Http
from pipeline.errors import HitrouterError
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
from pipeline.process.garbage import freeze_startup_objects
from pipeline.registry import declared_destinations, read_settings
from pipeline.telemetry.admin import admin_endpoint
from pipeline.telemetry.backlog import OLDEST
from pipeline.telemetry.health import Health
from pipeline.telemetry.readiness import State, refused_file
from pipeline.telemetry.waiting import WAITING

logger = logging.getLogger(__name__)

_PREFETCH_KBYTES, _FETCH_BYTES = 16_384, 131_072
"""Prefetch limits per connection; a full backlog holds about 40 MB instead of over 100."""
_GRACE_SECONDS = 6.0
"""A rebalance waits this long for requests in flight, so that their outcomes are committed and not repeated."""
_TOPICS_RETRY_SECONDS = 5.0
_HEARTBEAT_SECONDS = 1.0
_MAX_THREADS = 256
"""Threads are started on demand; a connection blocks at most one."""


class _ResetOnRebalance:
    """Resets the deliverer when its partitions change, and ends its pause, since another worker may get the partitions."""

    def __init__(self, connection: str, deliverer: Deliverer) -> None:
        self._connection = connection
        self._deliverer = deliverer

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        return self._deliverer.reset

    def revoked(self) -> None:
        WAITING.end(self._connection)
        self._deliverer.reset()


Running = dict[str, HttpDeliverer]
"""The running deliverers of HTTP destinations in this process, by connection."""


def wanted_apps(
    config: Config, slot: int, workers: WorkerHealth | None = None, running: Running | None = None
) -> Wanted:
    """Return one app per connection that has a sink, and one that retries hits which HTTP connections have set aside.

    `workers` receives the health of each app. `running` receives the HTTP deliverers, through which the latter app sends.
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
        wanted[SET_ASIDE_MEMBER] = (rebuild_key(config), partial(build_set_aside_app, config, slot, workers, running))
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
    wait_for_commit = isinstance(sink, Http)  # tables and files detect repeats
    deliverer, batch_records, linger_seconds = build_deliverer(name, topic, connection, destination, sink, settings)
    if isinstance(deliverer, HttpDeliverer):
        running[name] = deliverer
    watched_member = workers.member(name, topic)
    member = watched_member.member
    app = build_app(
        TransportSettings(
            config.kafka,
            f"{names.prefix}deliver-{name}",
            slot,
            MemberListener(_ResetOnRebalance(name, deliverer), member),
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
    monitored = MonitoredDeliverer(deliverer, member)
    faulty = FaultyRecords()

    async def deliver(batch: Batch, consumer: BatchConsumer) -> None:
        with oldest.in_progress(batch.oldest_ms):
            await deliver_batch(name, names, hits, monitored, batch, consumer, wait_for_commit, faulty)

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


def enlarge_default_executor() -> None:
    """Give the loop enough threads that hanging sinks do not block the name lookups of others.

    By default asyncio has few threads on a small machine.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_MAX_THREADS, "deliver"))


def run_deliver(watched: Watched, slot: int = 0) -> None:
    """Deliver until SIGTERM, and follow connections that are added, removed or changed."""
    health = Health("deliver", slot)
    health.readiness.add(refused_file(lambda: watched.refused))
    health.readiness.add(WAITING.conditions)
    # Hits that are set aside wait by design, so their member does not count as stalled.
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
        logger.warning("no connection has a sink, nothing to deliver")

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
                logger.error("configuration not in use yet, will retry: version=%s error=%s", changed.version, error)
                reason = f"version {changed.version} is not in use yet: {error}"
                health.readiness.begin("configuration", State.REFUSED, reason, time.monotonic())
                await asyncio.sleep(_TOPICS_RETRY_SECONDS)

    async def heartbeat(stopped: Callable[[], bool]) -> None:
        while not stopped():
            health.liveness.beat(time.monotonic())
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def background(stopped: Callable[[], bool]) -> None:
        health.stops_when(stopped)
        enlarge_default_executor()
        await asyncio.gather(
            heartbeat(stopped),
            record_pauses(stopped, watched.config, WAITING),
            follow_retention(stopped, watched.config.kafka, OLDEST),
        )

    freeze_startup_objects()
    run_apps(wanted, follow, background)
