"""The transport on a real Kafka whose answers get lost: the producer or the consumer is replaced, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import pytest
from confluent_kafka import KafkaError

from pipeline.config.models import Config
from pipeline.kafka import producer_calls
from pipeline.kafka.producer_instance import ProducerInstance
from pipeline.kafka.slot_state import Probe
from pipeline.kafka.topics import ensure_topics
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.kafka.transport.app import batch_agent, build_app
from pipeline.kafka.transport.assignment import Phase
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.kafka.transport.consumer import TransactionalConsumer
from pipeline.kafka.transport.poller import Poller
from pipeline.kafka.transport.settings import TransportSettings
from tests.contract.test_transport import Copier, KafkaWorld, numbered

pytestmark = pytest.mark.anyio


class LostAnswers:
    """Once, `call` does not return: with `carried_out` Kafka has done it all the same, without it has never heard of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, carried_out: bool) -> None:
        self.times = 1
        real, real_probe = ProducerInstance.call, ProducerInstance.probe
        silent: Future[Any] = Future()
        waits: set[ProducerInstance] = set()

        def make(instance: ProducerInstance, name: str, *arguments: Any) -> Future[Any]:
            if name != call or not self.times:
                return real(instance, name, *arguments)
            self.times -= 1
            if carried_out:
                real(instance, name, *arguments).result(30)
            waits.add(instance)
            return silent

        def probe(instance: ProducerInstance) -> Probe:
            if instance in waits:
                waits.discard(instance)
                return Probe.UNREACHABLE
            return real_probe(instance)

        monkeypatch.setattr(ProducerInstance, "call", make)
        monkeypatch.setattr(ProducerInstance, "probe", probe)
        monkeypatch.setattr(producer_calls, "_SETTLE_SECONDS", 0.2)
        monkeypatch.setattr(producer_calls, "_TICK_SECONDS", 0.1)


@pytest.fixture
def world(make_config: Callable[..., Config]) -> KafkaWorld:
    config = make_config()
    ensure_topics(config)
    return KafkaWorld(config)


@pytest.mark.parametrize(
    ("call", "carried_out"),
    [
        ("send_offsets_to_transaction", True),
        ("send_offsets_to_transaction", False),
        ("commit_transaction", True),
        ("commit_transaction", False),
    ],
)
async def test_an_answer_that_gets_lost_costs_the_producer_and_no_record(
    world: KafkaWorld, monkeypatch: pytest.MonkeyPatch, call: str, carried_out: bool
) -> None:
    lost = LostAnswers(monkeypatch, call, carried_out)
    world.put(*numbered(30))
    copier = Copier(world, "lost")
    async with copier.running():
        await copier.until(30)
        world.put(*numbered(30, "after"))
        await copier.until(60)
    assert lost.times == 0
    assert world.copied() == sorted(numbered(30) + numbered(30, "after"))
    committed = call == "commit_transaction" and carried_out
    assert copier.events[0] == ("committed" if committed else "aborted")


@asynccontextmanager
async def copying(world: KafkaWorld, group: str) -> AsyncIterator[tuple[Copier, TransactionalConsumer, Poller]]:
    """A worker that has copied its first thirty records, its consumer, and what polls for it."""
    copier = Copier(world, group)
    app = build_app(TransportSettings(world.config.kafka, f"{world.names.prefix}{group}"))
    batch_agent(app, "copy", world.names.hits_raw, copier.copy)
    world.put(*numbered(30))
    async with app:
        await copier.until(30)
        consumer = app.consumer
        assert isinstance(consumer, TransactionalConsumer) and consumer._poller is not None
        yield copier, consumer, consumer._poller


async def test_a_lost_consumer_is_replaced_and_nothing_is_doubled(world: KafkaWorld) -> None:
    async with copying(world, "fatal") as (copier, consumer, poller):
        replaced = poller._consumer
        poller._fatal = "injected"
        world.put(*numbered(30, "after"))
        await copier.until(60)
        assert poller._consumer is not replaced
        consumer.committer._replace(Phase.UNKNOWN, {})
        world.put(*numbered(30, "later"))
        await copier.until(90)
    assert world.copied() == sorted(numbered(30) + numbered(30, "after") + numbered(30, "later"))


async def test_a_consumer_that_silently_never_joins_again_is_replaced(
    world: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one did after a broker restart: no error, no new assignment, and polls that return nothing."""
    monkeypatch.setattr("pipeline.kafka.transport.outage._JOIN_SECONDS", 1.0)
    monkeypatch.setattr("pipeline.kafka.transport.outage._LOST_EVERY_SECONDS", 0.2)
    monkeypatch.setattr("pipeline.kafka.transport.outage._QUIET_SECONDS", 0.2)
    async with copying(world, "silent") as (copier, _, poller):
        replaced = poller._consumer
        await poller._run(replaced.unsubscribe)
        world.put(*numbered(30, "after"))
        await copier.until(60)
        assert poller._consumer is not replaced
    assert world.copied() == sorted(numbered(30) + numbered(30, "after"))


async def test_after_an_outage_the_producer_is_renewed_before_the_next_hit(world: KafkaWorld) -> None:
    async with copying(world, "renewed") as (copier, consumer, poller):
        before = consumer.producer._calls.instance
        await poller._run(poller._outage.failed, KafkaError(KafkaError._ALL_BROKERS_DOWN, "injected"))
        async with asyncio.timeout(30):
            while consumer.producer._calls.instance is before or not consumer.committer.idle.is_set():
                await asyncio.sleep(0.1)
        world.put(*numbered(30, "after"))
        await copier.until(60)
    assert world.copied() == sorted(numbered(30) + numbered(30, "after"))


async def test_while_commits_are_slow_the_batches_grow(world: KafkaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s per commit and batches of 50 would take 80 s for 2,000 records."""
    commit, sizes = TransactionalProducer.commit, []

    def slow(self: TransactionalProducer, *arguments: Any) -> None:
        time.sleep(2.0)
        commit(self, *arguments)

    monkeypatch.setattr(TransactionalProducer, "commit", slow)
    copier = Copier(world, "slow")

    async def copy(batch: Batch, consumer: BatchConsumer) -> None:
        sizes.append(len(batch))
        await copier.copy(batch, consumer)

    settings = TransportSettings(world.config.kafka, f"{world.names.prefix}slow", batch_records=50, growth=20)
    app = build_app(settings)
    batch_agent(app, "copy", world.names.hits_raw, copy)
    world.put(*numbered(100, "first"))
    async with app:
        await copier.until(50)
        world.put(*numbered(999, "then"), *numbered(901, "last"))
        await copier.until(2_000)
    assert len(world.copied()) == 2_000
    assert max(sizes) > 500 and max(sizes) <= 1_000 and len(sizes) < 12
