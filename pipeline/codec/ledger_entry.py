"""Ledger entries: counts of what one transaction did with one source partition, written in the same transaction.

An entry commits or aborts together with the outputs it counts, so sums over the topic are exact after any crash.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pipeline.codec.avro import Framing
from pipeline.codec.bounded_counts import OTHERS, fold_rare
from pipeline.codec.printable import shorten_bytes
from schemas import read_schema

EXPIRED = "expired"
"""The outcome of offsets that retention deleted before they were read."""

SET_ASIDE, SET_ASIDE_ENDED = "set_aside", "set_aside_ended"
"""A hit is set aside: it has no outcome yet, and waits on the topic `set-aside`. SET_ASIDE_ENDED is counted together with its later
outcome. SET_ASIDE is also the role of entries about records of that topic."""

MISCONFIGURED, FAILING, RESUMED = "misconfigured", "failing", "resumed"
"""The outcomes in entries of the role `pause`: a connection waits for its operator, for its destination, or has resumed."""

REASON_BYTES = 128
"""Most UTF-8 bytes of a reason that a sender may choose, such as the name of an unknown integration."""
MOST_REASONS = 50
"""Most reasons per project, connection and outcome in one entry; the rest is summed under OTHERS."""
_MOST_IN_ALL = 500
"""Most reasons per entry, over all groups with more than `_FEW_REASONS`."""
_FEW_REASONS = 10
_PAUSE_REASON_BYTES = 4_000
"""The reason of a pause is a sentence for the operator; `pause_notes.py` and `pauses.py` bound its characters."""

_CODEC = Framing(read_schema("ledger_entry.avsc"))


class Entry(NamedTuple):
    """The key of a count. `connection` is "" for the hit itself; `project` is "" if the record names none."""

    project: str
    connection: str
    outcome: str
    reason: str = ""


@dataclass(slots=True)
class LedgerEntry:
    """Counts of the records from `first_offset` up to, not including, `next_offset`; `at_ms` is the writer's clock.

    An entry of the role `replay` stands for one dead letter that an operator has replayed. One of the role `pause` records since
    when a connection waits, and why, or that it has resumed. An entry with the outcome `expired` counts the offsets of its range
    that retention deleted unread; some of them may have held commit markers.
    """

    role: Literal["route", "deliver", "set_aside", "replay", "pause"]
    topic: str
    partition: int
    first_offset: int
    next_offset: int
    at_ms: int
    counts: Counter[Entry] = field(default_factory=Counter)

    @property
    def owner(self) -> str:
        """The connection of an entry of the role `deliver`; "" for all other roles."""
        return next((e.connection for e in self.counts if e.connection), "") if self.role == "deliver" else ""

    @property
    def is_gap(self) -> bool:
        """Whether it counts offsets that retention deleted unread."""
        return any(e.outcome == EXPIRED for e in self.counts)


def expired_entry(
    role: Literal["route", "deliver", "set_aside"],
    topic: str,
    partition: int,
    first: int,
    following: int,
    at_ms: int,
    connection: str,
) -> LedgerEntry:
    """Return the entry for offsets that retention deleted before `role` read them; `connection` is only for `deliver`."""
    counts = Counter({Entry("", connection, EXPIRED): following - first})
    return LedgerEntry(role, topic, partition, first, following, at_ms, counts)


def bound_reasons(counts: Counter[Entry], reason_bytes: int = REASON_BYTES) -> None:
    """Bound the number and bytes of the reasons in `counts`, in place; the sums stay exact.

    Senders choose some reasons. Without these limits, one batch of hostile hits could make an entry too large for Kafka.
    """
    for entry in [e for e in counts if len(e[3]) * 4 > reason_bytes]:
        short = shorten_bytes(entry.reason, reason_bytes)
        if short != entry.reason:
            counts[entry._replace(reason=short)] += counts.pop(entry)
    if len(counts) <= _FEW_REASONS:
        return
    sizes = Counter(e[:3] for e in counts if e[3])
    flooded = {group for group, size in sizes.items() if size > _FEW_REASONS}
    if flooded:
        most = max(1, min(MOST_REASONS, _MOST_IN_ALL // len(flooded)))
        fold_rare(counts, most, lambda e: others_of(e) if e[:3] in flooded else e)


def others_of(entry: Entry) -> Entry:
    """Return the key that sums the rare reasons of the group of `entry`; an entry without a reason is its own key."""
    return Entry(entry.project, entry.connection, entry.outcome, OTHERS) if entry.reason else entry


def encode_ledger_entry(entry: LedgerEntry) -> bytes:
    """Return the Avro single object of schemas/ledger_entry.avsc, with bounded reasons."""
    bound_reasons(entry.counts, _PAUSE_REASON_BYTES if entry.role == "pause" else REASON_BYTES)
    return _CODEC.encode(
        {
            "role": entry.role,
            "topic": entry.topic,
            "partition": entry.partition,
            "first_offset": entry.first_offset,
            "next_offset": entry.next_offset,
            "at": entry.at_ms,
            "counts": [
                {"project": e[0], "connection": e[1], "outcome": e[2], "reason": e[3], "count": count}
                for e, count in entry.counts.items()
            ],
        }
    )


def decode_ledger_entry(data: bytes) -> LedgerEntry:
    """Return the entry in `data`. Raises ValueError if it is no ledger entry."""
    value = _CODEC.decode(data)
    at = value["at"]
    assert isinstance(at, datetime)
    counts = Counter(
        {Entry(c["project"], c["connection"], c["outcome"], c["reason"]): c["count"] for c in value["counts"]}
    )
    return LedgerEntry(
        value["role"],
        value["topic"],
        value["partition"],
        value["first_offset"],
        value["next_offset"],
        round(at.astimezone(UTC).timestamp() * 1000),
        counts,
    )
