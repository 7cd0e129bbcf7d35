"""Builds and runs the route role as a Faust app."""

from __future__ import annotations

import asyncio
import logging
import time

import faust

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import RAW_HIT_SCHEMA, WITHOUT_REGISTRY
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.config import Config, Watched
from pipeline.config.addresses import admin_address
from pipeline.errors import HitrouterError
from pipeline.kafka.lost_offsets import recover_from_ledger
from pipeline.kafka.retention import follow_retention
from pipeline.kafka.schema_registry import SchemaRegistry
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transport.app import batch_agent, build_app
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.kafka.transport.faulty import FaultyRecords
from pipeline.kafka.transport.run import run_app
from pipeline.kafka.transport.settings import TransportSettings
from pipeline.kafka.transport.watch import MemberListener
from pipeline.kafka.worker_health import WorkerHealth
from pipeline.process.garbage import reduce_gc_frequency
from pipeline.router.prepare import Preparer
from pipeline.router.route_batch import route_batch
from pipeline.router.routing import Routing
from pipeline.router.seen_hits import SeenHits
from pipeline.stages.deduplicate import Deduplicator
from pipeline.telemetry.admin import admin_endpoint
from pipeline.telemetry.backlog import OLDEST
from pipeline.telemetry.health import Health
from pipeline.telemetry.readiness import State, refused_file

logger = logging.getLogger(__name__)

_RELOAD_SECONDS = 2.0
_GROWTH = 5
"""While commits are slow, batches may have five times as many records; preparing one then blocks the loop for 0.4 s."""
_BEAT_SECONDS = 1.0


def build_preparer(config: Config, deduplicator: Deduplicator) -> Preparer:
    """Return the Preparer of one version of the configuration. Blocks on the schema registry, if there is one."""
    framings: dict[str, Framing] = {}
    raw_framing = WITHOUT_REGISTRY
    if config.kafka.schema_registry is not None:
        registry = SchemaRegistry(config.kafka.schema_registry)
        names = TopicNames(config.kafka.topic_prefix)
        raw_framing = registry.reading(RAW_HIT_SCHEMA)
        for name, connection in config.connections.items():
            if connection.format == "avro":
                framings[name] = registry.framing(names.deliveries(name), ROUTED_HIT_SCHEMA)
    return Preparer(config, deduplicator, Routing(config, framings), raw_framing)


def build_route_app(watched: Watched, slot: int, workers: WorkerHealth | None = None) -> faust.App:
    """Return the app of the route worker with number `slot`, from 0. It reports its state to `workers`."""
    config = watched.config
    names = TopicNames(config.kafka.topic_prefix)
    deduplicator = Deduplicator()
    preparer = build_preparer(config, deduplicator)
    workers = workers or WorkerHealth(Health("route", slot))
    workers.want([names.hits_raw])
    watched_member = workers.member(names.hits_raw, names.hits_raw)
    member, health = watched_member.member, workers.health
    group = f"{names.prefix}route"
    settings = TransportSettings(
        config.kafka,
        group,
        slot,
        MemberListener(SeenHits(config, group, deduplicator), member),
        growth=_GROWTH,
        watch=watched_member.watch,
        recover=recover_from_ledger(config.kafka, names.ledger, "route"),
    )
    app = build_app(settings)
    oldest = OLDEST.open(names.hits_raw, "")
    faulty = FaultyRecords()
    health.stops_when(lambda: app.should_stop)

    async def route(batch: Batch, consumer: BatchConsumer) -> None:
        with oldest.in_progress(batch.oldest_ms):
            await route_batch(preparer, names.ledger, batch, consumer, faulty)

    wanted: Config | None = None

    @app.timer(_RELOAD_SECONDS)
    async def reload() -> None:
        """Use a new version of the configuration from the next batch on, after creating its topics. Retries until it succeeds."""
        nonlocal preparer, wanted
        wanted = await asyncio.to_thread(watched.changed) or wanted
        if wanted is None:
            return
        try:
            await asyncio.to_thread(ensure_topics, wanted)
            preparer = await asyncio.to_thread(build_preparer, wanted, deduplicator)
            logger.info("configuration in use: version=%s", wanted.version)
        except (HitrouterError, ValueError, OSError) as error:
            logger.error("configuration not in use yet, will retry: version=%s error=%s", wanted.version, error)
            reason = f"version {wanted.version} is not in use yet: {error}"
            health.readiness.begin("configuration", State.REFUSED, reason, time.monotonic())
        else:
            wanted = None
            health.readiness.end("configuration", State.REFUSED)

    @app.task
    async def retention() -> None:
        await follow_retention(lambda: app.should_stop, config.kafka, OLDEST)

    @app.task
    async def beat() -> None:
        while not app.should_stop:
            health.liveness.beat(time.monotonic())
            await asyncio.sleep(_BEAT_SECONDS)

    batch_agent(app, "route", names.hits_raw, route)
    return app


def run_route(watched: Watched, slot: int = 0) -> None:
    """Route until SIGTERM, then finish the batch in progress."""
    health = Health("route", slot)
    health.readiness.add(refused_file(lambda: watched.refused))
    workers = WorkerHealth(health)

    def build() -> faust.App:
        app = build_route_app(watched, slot, workers)
        health.started()
        reduce_gc_frequency()
        return app

    with admin_endpoint(health, admin_address(watched.config.admin.listen, "route", slot)), workers.watching():
        ensure_topics(watched.config)
        run_app(build)
