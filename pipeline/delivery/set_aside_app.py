"""The Faust app that retries hits which were set aside: one per deliver process, for all connections."""

from __future__ import annotations

import time
from collections.abc import Mapping

import faust

from pipeline.codec.avro import Framing
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.codec.set_aside import LAP_SECONDS
from pipeline.config import Config, ConnectionConfig
from pipeline.delivery.deliverers import RoutedHits
from pipeline.delivery.set_aside_retries import GiveUpLimits, HitSender, SetAsideRetries
from pipeline.destination import Http
from pipeline.kafka.lost_offsets import recover_from_ledger
from pipeline.kafka.schema_registry import SchemaRegistry
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.topics.declared import SET_ASIDE_MEMBER
from pipeline.kafka.transport.app import batch_agent, build_app
from pipeline.kafka.transport.batch import Stateless
from pipeline.kafka.transport.settings import TransportSettings
from pipeline.kafka.transport.watch import MemberListener
from pipeline.kafka.worker_health import WorkerHealth
from pipeline.registry import declared_destinations

_BATCH_RECORDS = 1_000
_PREFETCH_KBYTES, _FETCH_BYTES = 1_024, 65_536
"""Small fetches suffice: only the first records of each partition may be due, and the partitions have different waits."""
_LINGER_SECONDS = 0.25
_GRACE_SECONDS = 6.0


def http_connections(config: Config) -> dict[str, ConnectionConfig]:
    """Return the connections whose hits can be set aside."""
    kinds = declared_destinations()
    return {n: c for n, c in config.connections.items() if isinstance(kinds[c.destination].sink, Http)}


def rebuild_key(config: Config) -> str:
    """Return a key that changes whenever the app must be rebuilt."""
    return "\n".join(f"{name} {one.model_dump_json()}" for name, one in sorted(http_connections(config).items()))


def build_set_aside_app(
    config: Config,
    slot: int,
    workers: WorkerHealth,
    senders: Mapping[str, HitSender],
    lap_seconds: float = LAP_SECONDS,
) -> faust.App:
    """Return the app that reads the topic `set-aside`; `senders` are the running deliverers of HTTP connections."""
    names, registry = TopicNames(config.kafka.topic_prefix), config.kafka.schema_registry
    hits = RoutedHits(SchemaRegistry(registry).reading(ROUTED_HIT_SCHEMA) if registry else Framing(ROUTED_HIT_SCHEMA))
    limits = {
        name: GiveUpLimits(one.delivery.give_up_after, one.delivery.give_up_misconfigured_after)
        for name, one in http_connections(config).items()
    }
    retries = SetAsideRetries(names, hits, limits, senders, lap_seconds)
    watched = workers.member(SET_ASIDE_MEMBER, names.set_aside)
    app = build_app(
        TransportSettings(
            config.kafka,
            f"{names.prefix}{SET_ASIDE_MEMBER}",
            slot,
            MemberListener(Stateless(), watched.member),
            _BATCH_RECORDS,
            _LINGER_SECONDS,
            wait_for_agents=False,
            prefetch_kbytes=_PREFETCH_KBYTES,
            fetch_bytes=_FETCH_BYTES,
            grace_seconds=_GRACE_SECONDS,
            watch=watched.watch,
            recover=recover_from_ledger(config.kafka, names.ledger, "set_aside"),
        )
    )

    async def close(*_: object, **__: object) -> None:
        await app.consumer.settle()
        watched.member.joining(time.monotonic())

    app.on_before_shutdown.connect(close, weak=False)
    batch_agent(app, SET_ASIDE_MEMBER, names.set_aside, retries.handle)
    return app
