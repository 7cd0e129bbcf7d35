"""A Faust Consumer with the built-in acks, timed commits, read offsets, seeks and tables disabled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from faust.transport.consumer import Consumer as FaustConsumer
from faust.types import TP, ConsumerMessage


class _NoReadOffset(dict[TP, int | None]):
    """An always empty mapping. Faust skips offsets below its read offset, which would lose hits after a rewind."""

    def __missing__(self, key: TP) -> None:
        return None

    def __setitem__(self, key: TP, value: int | None) -> None:
        pass


class QuietConsumer(FaustConsumer):
    """A Consumer that never changes offsets; only transactions do."""

    logger = logging.getLogger("mode")
    """mode's own messages about a service; the command line silences this logger."""
    consumer_stopped_errors = ()

    @property
    def committed(self) -> Mapping[TP, int]:
        """The committed next offset of each assigned partition."""
        raise NotImplementedError

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._read_offset = _NoReadOffset()

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit nothing; only transactions commit offsets."""
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
        """Do nothing; the poll thread owns the positions."""

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Do nothing; the poll thread owns the positions."""
        return {}

    async def _seek(self, partition: TP, offset: int) -> None:
        pass

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Do nothing; the poll thread owns the positions."""

    async def position(self, tp: TP) -> int | None:
        """Return None; only the poll thread knows the position."""
        return None

    def assignment(self) -> set[TP]:
        """Return the partitions assigned to this member."""
        return set(self.committed)

    def highwater(self, tp: TP) -> int:
        """Return 0; Faust's lag sensor is not used."""
        return 0

    def topic_partitions(self, topic: str) -> int | None:
        """Return None; pipeline/kafka/topics declares topics, not Faust."""
        return None

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """Return nothing; Faust tables are not used."""
        return {}

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """Return nothing; Faust tables are not used."""
        return {}

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """Return `partition`; the producer selects partitions by key."""
        return partition

    async def create_topic(self, *arguments: Any, **options: Any) -> None:
        """Do nothing; pipeline/kafka/topics declares topics, not Faust."""

    def close(self) -> None:
        """Do nothing; `on_stop` closes the Consumer."""
