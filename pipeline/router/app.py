"""The route role as a Faust app."""

from __future__ import annotations

import asyncio
import logging

import faust

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import RAW_HIT_SCHEMA, WITHOUT_REGISTRY
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.config import Config, Watched
from pipeline.errors import HitrouterError
from pipeline.garbage import collect_seldom
from pipeline.kafka.expired import record_gaps
from pipeline.kafka.retention import follow_retention
from pipeline.kafka.schema_registry import SchemaRegistry
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transport import Batch, BatchConsumer, TransportSettings, batch_agent, build_app, run_app
from pipeline.router.prepare import Preparer
from pipeline.router.routing import Routing
from pipeline.router.seen_hits import SeenHits
from pipeline.stages.deduplicate import Deduplicator
from pipeline.telemetry.admin import serve_until
from pipeline.telemetry.backlog import OLDEST

logger = logging.getLogger("hitrouter.route")

_RELOAD_SECONDS = 2.0
_GROWTH = 5
"""Batches of up to five times the records while commits are slow; to prepare one then holds up the loop for 0.4 s."""
_ADMIN_OFFSET = 1


def build_preparer(config: Config, deduplicator: Deduplicator) -> Preparer:
    """One version of the configuration at work. Blocks on the schema registry, where there is one."""
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


def build_route_app(watched: Watched, slot: int) -> faust.App:
    """The app of one route worker; `slot` numbers its seat in the group, from 0."""
    config = watched.config
    names = TopicNames(config.kafka.topic_prefix)
    deduplicator = Deduplicator()
    preparer = build_preparer(config, deduplicator)
    settings = TransportSettings(
        config.kafka, f"{names.prefix}route", slot, SeenHits(config, deduplicator), growth=_GROWTH
    )
    app = build_app(settings)
    oldest = OLDEST.open(names.hits_raw, "")

    async def route(batch: Batch, consumer: BatchConsumer) -> None:
        with oldest.at_work(batch.oldest_ms):
            work = preparer.prepare(batch)
            try:
                async with consumer.transaction(batch) as outputs:
                    work.write(outputs)
                    record_gaps(outputs, names.ledger, "route", batch)
            except BaseException:
                work.claim.discard()
                raise

    wanted: Config | None = None

    @app.timer(_RELOAD_SECONDS)
    async def reload() -> None:
        """The next batch is routed by the new version; its topics are made before. Tried again until it succeeds."""
        nonlocal preparer, wanted
        wanted = await asyncio.to_thread(watched.changed) or wanted
        if wanted is None:
            return
        try:
            await asyncio.to_thread(ensure_topics, wanted)
            preparer = await asyncio.to_thread(build_preparer, wanted, deduplicator)
            logger.info("version %s routes from now on", wanted.version)
        except (HitrouterError, ValueError, OSError) as error:
            logger.error("version %s does not route yet: %s", wanted.version, error)
        else:
            wanted = None

    @app.task
    async def retention() -> None:
        await follow_retention(lambda: app.should_stop, config.kafka, OLDEST)

    @app.task
    async def admin() -> None:
        address = config.admin.listen
        await serve_until("route", lambda: app.should_stop, address, _ADMIN_OFFSET, lambda: (200, "ready\n"))

    batch_agent(app, "route", names.hits_raw, route)
    return app


def run_route(watched: Watched, slot: int = 0) -> None:
    """Route until SIGTERM; the batch at work is finished first."""
    ensure_topics(watched.config)
    app = build_route_app(watched, slot)
    collect_seldom()
    run_app(app)
