"""Settings of one transactional Faust app."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import client_properties
from pipeline.kafka.group_offsets import Recover
from pipeline.kafka.transport.batch import AssignmentListener, Stateless
from pipeline.kafka.transport.watch import ConsumerWatch

SESSION_TIMEOUT_MS = 6_000
"""How long the partitions of a killed worker stay unread; the minimum that brokers allow by default."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """`group` is the consumer group with its prefix; `slot` numbers this worker in it, from 0.

    A worker that restarts on the same slot aborts the open transaction of the previous instance at once. The group membership
    is dynamic (no group.instance.id): after a kill, a group coordinator of Kafka 4.1 failed to expire a dead static member,
    assigned partitions to it, and waited for it in every rebalance.
    """

    kafka: KafkaConfig
    group: str
    slot: int = 0
    listener: AssignmentListener = field(default_factory=Stateless)
    batch_records: int = 2000
    linger_seconds: float = 0.05
    wait_for_agents: bool = True
    """A rebalance waits until the agents have processed their batch. For quick agents, not for agents that retry."""
    batch_bytes: int = 32_000_000
    prefetch_kbytes: int = 65_536
    """Prefetch limit in KiB; fetches already in flight come on top."""
    fetch_bytes: int = 1_048_576
    """Limit per partition in one fetch response, compressed; in memory it may be ten times as much."""
    growth: int = 1
    """A batch that waits for a slow commit may have this many times `batch_records`; 1 if repeating side effects is costly."""
    grace_seconds: float = 0.0
    """A rebalance or a stop waits this long for side effects in flight; far below the rebalance timeout."""
    watch: ConsumerWatch = field(default_factory=ConsumerWatch)
    """Reports the state of the consumer to the health of the process."""
    recover: Recover = lambda partitions: {}
    """Finds the next offsets after the group's committed offsets have expired; runs on the poll thread."""

    @property
    def most_records(self) -> int:
        """Maximum records of a batch that waits for a slow commit."""
        return self.batch_records * self.growth

    @property
    def transactional_id(self) -> str:
        """The transactional.id, which identifies the slot of this worker."""
        return f"{self.group}-{self.slot}"

    def consumer_properties(self) -> dict[str, Any]:
        """Return the librdkafka properties of the consumer."""
        return client_properties(
            self.kafka,
            **{
                "group__id": self.group,
                # Eager: all processing stops during a rebalance. Cooperative rebalances aborted transactions.
                "partition__assignment__strategy": "range",
                "isolation__level": "read_committed",
                "enable__auto__commit": False,
                "enable__auto__offset__store": False,
                # Report a position outside of its partition as an error, so that deleted offsets can be recorded (gaps.py).
                "auto__offset__reset": "error",
                # Reports the end of a partition, including trailing commit markers.
                "enable__partition__eof": True,
                "session__timeout__ms": SESSION_TIMEOUT_MS,
                "heartbeat__interval__ms": 500,
                # Also the rebalance timeout, so a dead member can delay the others for this long. This happens after a broker
                # restart: librdkafka joins with a new member id, and Kafka 4.1 does not always expire the old one. A long
                # rebuild may exceed it, because it runs inside a callback and librdkafka measures between polls. But a
                # rebalance that starts during the rebuild removes this member after that time.
                "max__poll__interval__ms": 20_000,
                "fetch__wait__max__ms": 100,
                "fetch__queue__backoff__ms": 50,
                "queued__max__messages__kbytes": self.prefetch_kbytes,
                "fetch__message__max__bytes": self.fetch_bytes,
            },
        )
