"""Tracks the next offset of each partition, and detects offsets that retention deleted before this group read them.

The consumer runs with `auto.offset.reset=error`: a fetch below the low watermark returns an error with the offset, even if
the partition is empty. Gaps between the offsets of records would not show this, because commit markers and aborted
transactions leave gaps, too. After the error librdkafka does not fetch the partition until it is assigned again; `seek`
does not work, because it requires a partition that is being fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP

logger = logging.getLogger(__name__)

_EARLIEST, _LATEST = -2, -1
"""Timestamps that mean the low watermark and the last stable offset in ListOffsets."""
_ASK_SECONDS, _LONGEST_ASK_SECONDS = 1.0, 3.0
"""Timeouts of the first and the longest request. A timeout doubles the next one, so that a slow broker can respond, too.
Two of the longest are shorter than max.poll.interval.ms."""


class Gap(NamedTuple):
    """The offsets `first` <= offset < `following` of one partition. Some may have been commit markers or aborted records."""

    first: int
    following: int
    to_the_end: bool = False
    """The partition was empty after the gap."""

    @property
    def offsets(self) -> int:
        """Number of offsets; an upper bound of the number of records."""
        return self.following - self.first

    @property
    def is_last_marker(self) -> bool:
        """True if the gap holds no record, provided that only transactions write the topic.

        A commit marker follows its records, so a single offset at the end is the marker of records read before.
        """
        return self.to_the_end and self.offsets == 1


class Resumption(NamedTuple):
    """The next offset of a partition, and the gap before it, if any."""

    offset: int
    gap: Gap | None


def resume_at(position: int, low: int, end: int) -> Resumption:
    """Return where to continue after the broker has rejected `position`. Pure.

    A position beyond `end` means that the topic was recreated or lost its end; it is read from its start, without a gap.
    A position between `low` and `end` was rejected temporarily and is used again.
    """
    if position < low:
        return Resumption(low, Gap(position, low, low >= end))
    return Resumption(low if position > end else position, None)


class Positions:
    """The next offset of each assigned partition. Used on the poll thread only, like the Consumer."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._next: dict[TP, int] = {}
        self._handed: dict[TP, int] = {}
        """The next offsets that the batches so far will commit."""
        self._refused: dict[TP, int] = {}
        """Positions that the broker rejected because they are outside of the partition."""
        self._ask_seconds = _ASK_SECONDS

    def assign(self, offsets: Mapping[TP, int]) -> None:
        """Assign exactly the partitions of `offsets` to the Consumer, each at its offset."""
        self._next, self._handed, self._refused = dict(offsets), dict(offsets), {}
        self._reassign()

    def note(self, messages: Iterable[Message]) -> list[Message]:
        """Update the positions from polled `messages`; return the records and the errors that do not concern positions."""
        rest: list[Message] = []
        for message in messages:
            error = message.error()
            tp, offset = TP(message.topic() or "", message.partition() or 0), message.offset() or 0
            if error is None:
                rest.append(message)
                self._next[tp] = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                if offset > self._next.get(tp, offset):
                    self._next[tp] = offset  # only commit markers and aborted records in between
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                self._refused[tp] = self._next.get(tp, offset)
            else:
                rest.append(message)
        return rest

    def gaps(self) -> dict[TP, Gap]:
        """Return the gaps since the last call and continue after them. Blocks while it requests the watermarks."""
        if not self._refused:
            return {}
        asked = list(self._refused)
        try:
            lows, ends = (self._ask(asked, where) for where in (_EARLIEST, _LATEST))
        except KafkaException as error:
            logger.warning("low watermark not known yet, will retry: error=%s", error.args[0].str())
            self._ask_seconds = min(_LONGEST_ASK_SECONDS, 2 * self._ask_seconds)
            return {}
        self._ask_seconds = _ASK_SECONDS
        found: dict[TP, Gap] = {}
        for tp in asked:
            position = self._refused.pop(tp)
            offset, gap = resume_at(position, lows[tp], ends[tp])
            if gap is not None:
                found[tp] = gap
            elif offset < position:
                logger.error(
                    "topic was recreated or lost records, reading from its start: topic=%s partition=%d "
                    "position=%d end=%d",
                    *(tp.topic, tp.partition, position, ends[tp]),
                )
            self._next[tp] = offset
        self._reassign()
        return found

    def to_commit(self) -> dict[TP, int]:
        """Return the offsets that the next batch adds to those of earlier batches. Call it once per batch."""
        moved = {tp: offset for tp, offset in self._next.items() if offset != self._handed.get(tp)}
        self._handed |= moved
        return moved

    def _ask(self, partitions: Iterable[TP], where: int) -> dict[TP, int]:
        found = self._consumer.offsets_for_times(
            [TopicPartition(tp.topic, tp.partition, where) for tp in partitions], timeout=self._ask_seconds
        )
        for partition in found:
            if partition.error is not None:
                raise KafkaException(partition.error)
        return {TP(partition.topic, partition.partition): partition.offset for partition in found}

    def _reassign(self) -> None:
        # This drops prefetched records, which are fetched again; it happens rarely.
        self._consumer.assign([TopicPartition(tp.topic, tp.partition, offset) for tp, offset in self._next.items()])
