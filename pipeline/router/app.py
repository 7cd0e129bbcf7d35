"""The route role as a Faust app."""

from __future__ import annotations

import faust

from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transport import Batch, BatchConsumer, TransportSettings, batch_agent, build_app, run_apps
from pipeline.router.prepare import Preparer
from pipeline.router.seen_hits import SeenHits
from pipeline.stages.deduplicate import Deduplicator


def build_route_app(config: Config, slot: int) -> faust.App:
    """The app of one route worker; `slot` numbers its seat in the group, from 0."""
    names = TopicNames(config.kafka.topic_prefix)
    deduplicator = Deduplicator()
    preparer = Preparer(config, deduplicator)
    settings = TransportSettings(config.kafka, f"{names.prefix}route", slot, SeenHits(config, deduplicator))
    app = build_app(settings)

    async def route(batch: Batch, consumer: BatchConsumer) -> None:
        work = preparer.prepare(batch)
        try:
            async with consumer.transaction(batch) as outputs:
                work.write(outputs)
        except BaseException:
            work.claim.discard()
            raise

    batch_agent(app, "route", names.hits_raw, route)
    return app


def run_route(config: Config, slot: int = 0) -> None:
    """Route until SIGTERM; the batch at work is finished first."""
    ensure_topics(config)
    run_apps([build_route_app(config, slot)])
