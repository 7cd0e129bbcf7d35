"""Offsets that retention took before this group read them, and where each partition is read next.

The consumer runs with `auto.offset.reset=error`: a fetch below the low watermark comes as an error that names the offset,
also where the partition is empty and no record will follow. Comparing offsets of records would not do: commit markers and
aborted transactions leave the same holes. librdkafka stops to fetch such a partition until it is assigned again, because
`seek` refuses a partition that is not being fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP

logger = logging.getLogger(__name__)

_EARLIEST, _LATEST = -2, -1
"""ListOffsets takes these as time stamps: the low watermark and the last stable offset."""
_ASK_SECONDS, _LONGEST_ASK_SECONDS = 1.0, 3.0
"""Time-out of the first question; each one without an answer doubles it, so that a slow broker can answer, too. Two of the
longest are shorter than max.poll.interval.ms."""


class Gap(NamedTuple):
    """The offsets `first` <= offset < `following` of one partition. Some may have held commit markers or aborted records."""

    first: int
    following: int
    to_the_end: bool = False
    """Nothing was left behind it."""

    @property
    def offsets(self) -> int:
        """How many offsets; an upper bound of the records."""
        return self.following - self.first

    @property
    def is_last_marker(self) -> bool:
        """Whether it holds no record, on a topic that is written by transactions alone.

        The marker of a transaction follows its records, so a single offset at the end is the marker of what was read before.
        """
        return self.to_the_end and self.offsets == 1


class Resumption(NamedTuple):
    """Where a partition is read on, and the gap before that, if any."""

    offset: int
    gap: Gap | None


def resume_at(position: int, low: int, end: int) -> Resumption:
    """Where to read on after the broker has refused `position`; pure.

    Behind `end` the topic was made anew, or lost its end: it is read from its beginning, and nothing was missed.
    Between the two the broker's answer was passing, and the same position is asked again.
    """
    if position < low:
        return Resumption(low, Gap(position, low, low >= end))
    return Resumption(low if position > end else position, None)


class Positions:
    """Where each assigned partition is read next. Belongs to the poll thread, like the Consumer that it assigns."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._next: dict[TP, int] = {}
        self._handed: dict[TP, int] = {}
        """What the batches so far commit once they are done."""
        self._refused: dict[TP, int] = {}
        """Positions outside of their partition."""
        self._ask_seconds = _ASK_SECONDS

    def assign(self, offsets: Mapping[TP, int]) -> None:
        """Read each partition of `offsets` from its offset on, and no other partition."""
        self._next, self._handed, self._refused = dict(offsets), dict(offsets), {}
        self._reassign()

    def note(self, messages: Iterable[Message]) -> list[Message]:
        """Take over what `messages`, as polled, say about positions; returns those that say anything else."""
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
        """The gaps since the last call; reading goes on behind them. Blocks while the broker is asked."""
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
                    "topic was made anew or lost records, reading from its beginning: topic=%s partition=%d "
                    "position=%d end=%d",
                    *(tp.topic, tp.partition, position, ends[tp]),
                )
            self._next[tp] = offset
        self._reassign()
        return found

    def to_commit(self) -> dict[TP, int]:
        """By partition what the next batch can commit beyond what the earlier ones do; call once for each batch."""
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
        # What librdkafka has read ahead is dropped and read again; that is rare.
        self._consumer.assign([TopicPartition(tp.topic, tp.partition, offset) for tp, offset in self._next.items()])
