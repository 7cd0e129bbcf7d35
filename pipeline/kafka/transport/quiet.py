"""What Faust's Consumer does by itself, switched off: acks, timed commits, read offsets, seeks and tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from faust.transport.consumer import Consumer as FaustConsumer
from faust.types import TP, ConsumerMessage


class _NoReadOffset(dict[TP, int | None]):
    """Faust skips offsets below its own read offset; after a rewind that would lose hits."""

    def __missing__(self, key: TP) -> None:
        return None

    def __setitem__(self, key: TP, value: int | None) -> None:
        pass


class QuietConsumer(FaustConsumer):
    """A Consumer that moves no offset: batches and transactions do."""

    logger = logging.getLogger("mode")
    """mode's own messages about a service; the command line silences this logger."""
    consumer_stopped_errors = ()

    @property
    def committed(self) -> Mapping[TP, int]:
        """Assigned partitions with the next offset as the last commit left it."""
        raise NotImplementedError

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._read_offset = _NoReadOffset()

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Offsets are committed by transactions only."""
        self._acked.clear()
        self._acked_index.clear()
        return False

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        return True

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        return {}

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        return record

    async def perform_seek(self) -> None:
        """Positions belong to the poll thread."""

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Positions belong to the poll thread."""
        return {}

    async def _seek(self, partition: TP, offset: int) -> None:
        pass

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Positions belong to the poll thread."""

    async def position(self, tp: TP) -> int | None:
        """Unknown to the loop."""
        return None

    def assignment(self) -> set[TP]:
        """The partitions of this member."""
        return set(self.committed)

    def highwater(self, tp: TP) -> int:
        """Faust's lag sensor is not used."""
        return 0

    def topic_partitions(self, topic: str) -> int | None:
        """Topics are declared in pipeline/kafka/topics.py, not by Faust."""
        return None

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """Faust tables are not used."""
        return {}

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """Faust tables are not used."""
        return {}

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """The producer decides."""
        return partition

    async def create_topic(self, *arguments: Any, **options: Any) -> None:
        """Topics are declared in pipeline/kafka/topics.py, not by Faust."""

    def close(self) -> None:
        """Closed by on_stop."""
