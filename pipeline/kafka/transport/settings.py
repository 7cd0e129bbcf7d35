"""What one transactional Faust app needs to know about its slot and its batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import client_properties
from pipeline.kafka.group_offsets import Recover
from pipeline.kafka.transport.batch import AssignmentListener, Stateless
from pipeline.kafka.transport.watch import ConsumerWatch

SESSION_TIMEOUT_MS = 6_000
"""How long a killed worker's partitions wait; the least that a broker allows by default."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """`group` is the consumer group with its prefix; `slot` numbers this worker in it, from 0.

    The slot is stable: a worker that is started again on it ends the transaction of the previous instance at once. The
    membership is not (no group.instance.id): a coordinator that was killed may forget to expire a static member that
    is gone, gives it partitions, and waits for it in every rebalance; seen with Kafka 4.1 in the proof.
    """

    kafka: KafkaConfig
    group: str
    slot: int = 0
    listener: AssignmentListener = field(default_factory=Stateless)
    batch_records: int = 2000
    linger_seconds: float = 0.05
    wait_for_agents: bool = True
    """A rebalance waits until the agents are through with their batch: for quick agents, not for ones that retry."""
    batch_bytes: int = 32_000_000
    prefetch_kbytes: int = 65_536
    """At so many KiB of records librdkafka stops reading ahead; what it has asked for by then comes on top."""
    fetch_bytes: int = 1_048_576
    """Of one partition in one answer, as it is compressed: it may be ten times as much in memory."""
    growth: int = 1
    """A batch that waits for a slow commit takes up to this many times `batch_records`; 1 where a repeat costs something."""
    grace_seconds: float = 0.0
    """A rebalance and a stop wait this long for side effects that are under way; far below the time-out of a rebalance."""
    watch: ConsumerWatch = field(default_factory=ConsumerWatch)
    """What the health of the process learns about the consumer."""
    recover: Recover = lambda partitions: {}
    """Knows where to read on after Kafka has dropped the group's offsets; runs on the poll thread."""

    @property
    def most_records(self) -> int:
        """The records of a batch that waits for a slow commit."""
        return self.batch_records * self.growth

    @property
    def transactional_id(self) -> str:
        """Names this worker to Kafka."""
        return f"{self.group}-{self.slot}"

    def consumer_properties(self) -> dict[str, Any]:
        """Properties of the group's consumer."""
        return client_properties(
            self.kafka,
            **{
                "group__id": self.group,
                # Eager: nothing runs on through a rebalance, so none aborts a transaction (cooperative did).
                "partition__assignment__strategy": "range",
                "isolation__level": "read_committed",
                "enable__auto__commit": False,
                "enable__auto__offset__store": False,
                # A position outside of its partition is an error, so that what retention took can be recorded (gaps.py).
                "auto__offset__reset": "error",
                # Tells where a partition ends behind commit markers.
                "enable__partition__eof": True,
                "session__timeout__ms": SESSION_TIMEOUT_MS,
                "heartbeat__interval__ms": 500,
                # Also the time-out of a rebalance: as long may a member that is gone hold the others up, as after a restart of the
                # broker, when librdkafka joins under a new member id and Kafka 4.1 does not always expire the old one. A long
                # rebuild is not cut short by it: it runs inside a callback, and librdkafka measures from one poll to the
                # next. But a rebalance that begins meanwhile waits no longer for its member.
                "max__poll__interval__ms": 20_000,
                "fetch__wait__max__ms": 100,
                "fetch__queue__backoff__ms": 50,
                "queued__max__messages__kbytes": self.prefetch_kbytes,
                "fetch__message__max__bytes": self.fetch_bytes,
            },
        )
