"""Hits that are set aside: the headers of the topic `set-aside`, and how long its records wait (contract.md, section 6).

A hit that alone is answered 401, 403 or 410 waits on this topic while its connection goes on. Each partition has its own wait:
30 s, 1, 2, 4, 8, 16 and 32 minutes. A hit that is refused again, although its destination took others meanwhile, moves to the next
partition, and stays in the last one. While the destination takes none a hit waits 30 s each time. So the records of a
partition become due in their order, and few of them are written again before their hit is asked.

What that costs: a hit that is refused for 24 h is asked and written 51 times. A connection sets aside at most 100 hits at once and
2,880 a day (`MOST_AT_ONCE`, `PER_MINUTE` in refusals.py). So a stranger who sends such hits all day long makes at most 1.7 requests
a second and, at 1 KB a hit, 150 MB a day on this topic, for each connection and deliver process. While a connection takes no hit
those that it has set aside, 1,000 of one pause at most, are written again every 30 s, and a few of them are asked: at most 34 KB a
second.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.codec.printable import escape_controls, shorten
from pipeline.codec.raw_record import RawHeaders

LAP_SECONDS = 30.0
"""The wait of partition 0; that of each next one is twice as long."""
PARTITIONS = 7
NOT_ASKED_PARTITION = 0
"""Where a hit waits that was not asked, or whose refusal may be its connection's fault: it is asked soon after that ends."""
_MESSAGE_LIMIT = 500
"""Characters."""


def wait_seconds(partition: int, lap_seconds: float = LAP_SECONDS) -> float:
    """How long a record of `partition` waits before its hit is asked again."""
    return lap_seconds * 2.0 ** min(partition, PARTITIONS - 1)


@dataclass(frozen=True, slots=True)
class SetAsideHit:
    """Where a hit comes from, since when it is set aside, how often it was asked, and what its destination said last.

    `topic`, `partition` and `offset` are the place of its record on the topic of its connection; `since_ms` is in ms since 1970.
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
        """The partition of `set-aside` on which it waits."""
        return min(max(self.asked, 1), PARTITIONS) - 1

    def headers(self) -> list[tuple[str, bytes | str | None]]:
        """Kafka headers, UTF-8."""
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
        """Return what the headers of a record say; None for a record that no deliverer wrote."""
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
