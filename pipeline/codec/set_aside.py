"""Hits that are set aside: the headers of the topic `set-aside`, and how long its records wait (contract.md, section 6).

If a destination answers 401, 403 or 410 for a single hit only, that hit is set aside on this topic, and its connection continues.
Each partition has its own wait: 30 s, 1, 2, 4, 8, 16 and 32 minutes. If the hit is refused again although the destination accepted
others meanwhile, it moves to the next partition, up to the last one. While the destination accepts no hit at all, it waits 30 s
each time. So records of a partition become due in order, and few are rewritten before their hit is retried.

Cost: a hit that is refused for 24 h is sent and rewritten 51 times. A connection sets aside at most 100 hits at once and 2,880 a
day (`MOST_AT_ONCE`, `PER_MINUTE` in refusals.py). So a stranger who sends such hits all day causes at most 1.7 requests a second
and, at 1 KB a hit, 150 MB a day on this topic, per connection and deliver process. While a connection accepts no hit, the hits that
it has set aside, at most 1,000 in one pause, are rewritten every 30 s, and a few of them are sent: at most 34 KB a second.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.codec.printable import escape_controls, shorten
from pipeline.codec.raw_record import RawHeaders

LAP_SECONDS = 30.0
"""The wait of partition 0; each next partition waits twice as long."""
PARTITIONS = 7
NOT_ASKED_PARTITION = 0
"""For hits that were not sent, or whose refusal may be the connection's fault; they are retried soon after it recovers."""
_MESSAGE_LIMIT = 500
"""Most characters of a message."""


def wait_seconds(partition: int, lap_seconds: float = LAP_SECONDS) -> float:
    """Return how long a record of `partition` waits before its hit is sent again."""
    return lap_seconds * 2.0 ** min(partition, PARTITIONS - 1)


@dataclass(frozen=True, slots=True)
class SetAsideHit:
    """One hit that is set aside: its origin, since when, how often it was sent (`asked`), and the last answer of its destination.

    `topic`, `partition` and `offset` locate its record on the topic of its connection; `since_ms` is in ms since 1970.
    """

    connection: str
    project: str
    topic: str
    partition: int
    offset: int
    since_ms: int
    asked: int
    message: str

    @property
    def next_partition(self) -> int:
        """The partition of `set-aside` on which it waits next."""
        return min(max(self.asked, 1), PARTITIONS) - 1

    def headers(self) -> list[tuple[str, bytes | str | None]]:
        """Return the Kafka headers, in UTF-8."""
        fields = {
            "connection": self.connection,
            "project": self.project,
            "origin-topic": self.topic,
            "origin-partition": str(self.partition),
            "origin-offset": str(self.offset),
            "since": str(self.since_ms),
            "asked": str(self.asked),
            "message": shorten(escape_controls(self.message), _MESSAGE_LIMIT),
        }
        return [(name, value.encode(errors="replace")) for name, value in fields.items()]

    @classmethod
    def read(cls, headers: RawHeaders | None) -> SetAsideHit | None:
        """Parse the headers of a record; None if no deliverer wrote it."""
        texts = {name: (value or b"").decode(errors="replace") for name, value in headers or ()}
        try:
            return cls(
                texts["connection"],
                texts["project"],
                texts["origin-topic"],
                int(texts["origin-partition"]),
                int(texts["origin-offset"]),
                int(texts["since"]),
                int(texts["asked"]),
                texts["message"],
            )
        except (KeyError, ValueError):
            return None
