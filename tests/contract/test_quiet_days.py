"""A slot that was quiet for longer than Kafka remembers its transactional id: nothing is sent that cannot be committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded import broker as embedded
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import ensure_topics
from pipeline.kafka.transport.app import BatchHandler, batch_agent, build_app
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.kafka.transport.settings import TransportSettings
from tests.contract.test_transport import Copier, KafkaWorld
from tests.roles import wait_until

pytestmark = pytest.mark.anyio
_PARTITIONS = 4


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A broker that forgets a transactional id after 2 s instead of seven days."""
    with pytest.MonkeyPatch.context() as patch:
        plain = embedded.server_properties
        patch.setattr(
            embedded,
            "server_properties",
            lambda node, nodes: (
                plain(node, nodes)
                + "transactional.id.expiration.ms=2000\nproducer.id.expiration.ms=2000\n"
                + "transaction.remove.expired.transaction.cleanup.interval.ms=500\n"
            ),
        )
        broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", tmp_path_factory.mktemp("forgetful"))
        broker.start()
    yield broker
    broker.stop()


def wait_until_forgotten(servers: str, transactional_id: str) -> None:
    """Read Kafka's own topic of transactional ids: a record without a value ends one."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "transactions", "enable.auto.commit": False})
    consumer.assign([TopicPartition("__transaction_state", partition, 0) for partition in range(_PARTITIONS)])
    values: list[bytes | None] = []

    def forgotten() -> bool:
        found = [message for message in consumer.consume(1000, 0.5) if message.error() is None]
        values.extend(m.value() for m in found if (m.key() or b"").endswith(transactional_id.encode()))
        return bool(values) and values[-1] is None

    try:
        wait_until(forgotten, "the expiry of the id")
    finally:
        consumer.close()


@pytest.mark.parametrize("effects", [True, False])
async def test_a_hit_after_quiet_days_is_handled_once(
    forgetful: EmbeddedBroker,
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    effects: bool,
) -> None:
    monkeypatch.setattr("pipeline.kafka.transport.side_effects.VERIFY_AFTER_SECONDS", 1.0)
    made = make_config()
    kafka = made.kafka.model_copy(update={"bootstrap_servers": forgetful.bootstrap_servers})
    config = made.model_copy(update={"kafka": kafka})
    ensure_topics(config)
    world, sent = KafkaWorld(config), []
    copier = Copier(world, "quiet")

    async def send(batch: Batch, consumer: BatchConsumer) -> None:
        """As the deliverer does: the side effect comes before the commit."""
        with consumer.guard(batch) as guard:
            await guard.verify()
            sent.extend(record.value() for part in batch.records.values() for record in part)
            await copier.copy(batch, consumer)

    handle: BatchHandler = send if effects else copier.copy
    settings = TransportSettings(kafka, f"{world.names.prefix}quiet-{effects}")
    app = build_app(settings)
    batch_agent(app, "send", world.names.hits_raw, handle)
    world.put(b"hit 1")
    async with app:
        await copier.until(1)
        for number in (2, 3):
            await asyncio.to_thread(wait_until_forgotten, kafka.servers, settings.transactional_id)
            world.put(b"hit %d" % number)
            await copier.until(number)
    hits = [b"hit 1", b"hit 2", b"hit 3"]
    assert world.copied() == hits
    if effects:
        assert sent == hits
