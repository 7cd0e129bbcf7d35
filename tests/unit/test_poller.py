"""What the poll thread does with what a consumer gives it around an assignment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import pytest
from confluent_kafka import OFFSET_END, KafkaError, Message, TopicPartition
from faust.types import TP

from pipeline.config.models import KafkaConfig
from pipeline.kafka.transport import poller as poller_module
from pipeline.kafka.transport.batch import Batch
from pipeline.kafka.transport.committer import Committer
from pipeline.kafka.transport.poller import Poller
from pipeline.kafka.transport.settings import TransportSettings

pytestmark = pytest.mark.anyio
TP0 = TP("hits-raw", 0)
COMMITTED, END = 5, 90


class QuickConsumer:
    """Reads ahead of every pause: it returns what lies at the position that was assigned last, at once."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self.position: int | None = None
        self.assigns = True

    def subscribe(self, topics: list[str], on_assign: Callable[..., None], **_: Any) -> None:
        self._on_assign = on_assign

    def poll(self, timeout: float) -> Message | None:
        if self.assigns:
            self.assigns = False
            self._on_assign(self, [TopicPartition(*TP0)])
        return self._next()

    def consume(self, count: int, timeout: float) -> list[Message]:
        found = self._next()
        return [] if found is None else [found]

    def _next(self) -> Message | None:
        if self.position is None:
            return None
        self.position += 1
        if self.position > END + 3:
            return Message(topic=TP0.topic, partition=0, offset=self.position - 1, error=EOF)
        return Message(topic=TP0.topic, partition=0, offset=self.position - 1, value=b"v")

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self.position = {OFFSET_END: END}.get(partitions[0].offset, partitions[0].offset)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Too late."""

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Not needed."""

    def committed(self, partitions: Sequence[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(*TP0, COMMITTED)]  # type: ignore[call-arg]

    def consumer_group_metadata(self) -> object:
        return object()

    def close(self) -> None:
        """Nothing to leave."""


EOF = KafkaError(KafkaError._PARTITION_EOF, "end")


class Owner:
    def __init__(self) -> None:
        self.committer: Committer

    async def assigned(self, offsets: Mapping[TP, int], install: Callable[[], None]) -> None:
        install()
        self.committer.assigned(offsets)

    async def revoked(self, lost: bool) -> None:
        raise NotImplementedError


def never(reason: str) -> NoReturn:
    raise AssertionError(reason)


async def test_nothing_that_comes_before_the_state_is_there_is_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller_module, "Consumer", QuickConsumer)
    owner = Owner()
    committer = Committer("g", object(), never, never, never, lambda: False)  # type: ignore[arg-type]
    owner.committer = committer
    poller = Poller(TransportSettings(KafkaConfig(), "g", linger_seconds=0.02), owner, committer)
    await poller.subscribe([TP0.topic])
    batches: list[Batch] = []
    async with asyncio.timeout(20):
        while not batches:
            batch = await poller.poll()
            if batch is not None:
                batches.append(batch)
    assert batches[0].records[TP0][0].offset() == COMMITTED
    await poller.close()
