"""The transactional producer of one slot: begins, fills and commits transactions, and replaces a lost librdkafka producer.

A librdkafka producer can become unusable: after a fatal error, after the coordinator has aborted its transaction, or in a call
that never returns after a broker restart (librdkafka issues 5456, 5511). The process then discards it and creates a new one
with the same transactional.id, which aborts the open transaction. `slot_state.py` makes the decisions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pipeline.codec.raw_record import Headers
from pipeline.config.models import KafkaConfig
from pipeline.errors import OutcomeUnknown, RecordsRefused, RecordTooLarge, TransactionAborted, WorkerMustRestart
from pipeline.kafka.client import client_properties
from pipeline.kafka.new_client import new_client_reaches
from pipeline.kafka.producer_calls import InstanceLost, ProducerCalls
from pipeline.kafka.producer_instance import ProducerInstance
from pipeline.kafka.slot_state import Reaction, State, Step, next_state

TRANSACTION_TIMEOUT_MS = 10_000
"""The broker aborts the transaction of a dead worker after this time; read_committed readers wait that long."""
_FULL_QUEUE_SECONDS = 5.0
_METADATA_SECONDS = 5.0


class TransactionalProducer:
    """Runs one transaction after the other under `transactional_id`, which identifies the slot of this worker.

    `initialise`, `commit`, `commit_alone`, `abort` and `renew` block on the network; call them from one thread. `begin`,
    `produce` and `produce_all` block only briefly; call them from one thread, never while one of the others runs. Any
    thread may call `close`.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        transactional_id: str,
        make: Callable[[dict[str, Any]], ProducerInstance] = ProducerInstance,
        **properties: Any,
    ) -> None:
        self.transactional_id = transactional_id
        self._state = State.INITIALISING
        self._broken: str | None = None
        """Why the current instance cannot abort its transaction, or None."""
        self._outdated_topics: set[str] = set()
        """Topics with partitions that the current instance does not know yet."""
        self._is_refused = False
        """The open transaction had a record that Kafka does not accept."""
        all_properties = client_properties(
            kafka,
            **{
                "transactional__id": transactional_id,
                "transaction__timeout__ms": TRANSACTION_TIMEOUT_MS,
                "compression__type": "lz4",
                "linger__ms": 2,
                # The markers of the previous transaction may still be in flight: retry soon (default 100 ms).
                "retry__backoff__ms": 10,
                "batch__size": 1_000_000,
                "queue__buffering__max__messages": 500_000,
                **properties,
            },
        )
        self._calls = ProducerCalls(
            transactional_id,
            TRANSACTION_TIMEOUT_MS / 1000,
            partial(make, all_properties),
            kafka.servers,
            partial(new_client_reaches, kafka),
        )

    def initialise(self, patience_seconds: float = math.inf) -> None:
        """Fence the previous instance of this slot and abort its open transaction. Waits for Kafka until `close`.

        Raises BrokerUnavailable after `patience_seconds`.
        """
        self._calls.give_up_at = time.monotonic() + patience_seconds
        try:
            self._calls.initialise()
            self._become(State.IDLE)
        except InstanceLost as lost:
            self._replace(lost)
        self._calls.give_up_at = math.inf

    def begin(self) -> None:
        """Open a transaction, without a request. Raises TransactionAborted if this fails; then call `abort`."""
        self._become(State.OPEN)
        self._calls.begin()
        self._is_refused = False
        try:
            self._calls.instance.producer.begin_transaction()
        except KafkaException as error:
            self._broken = f"{Step.BEGIN.value}: {error.args[0].name()}: {error.args[0].str()}"
            raise TransactionAborted(self._broken) from error

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Headers | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        """Queue one record in the open transaction. Partition -1 selects the partition by the key (CRC32).

        Raises TransactionAborted if the transaction must be aborted, RecordTooLarge if the record exceeds
        `message.max.bytes`, and KafkaException for any other record that cannot be sent. The last two leave the transaction
        unchanged.
        """
        producer, until = self._calls.instance.producer, time.monotonic() + _FULL_QUEUE_SECONDS
        while True:
            try:
                if headers is None and not timestamp_ms:
                    producer.produce(topic, value, key, partition)
                else:
                    producer.produce(topic, value, key, partition, None, None, timestamp_ms, headers)
                return
            except BufferError:
                if time.monotonic() > until:
                    raise TransactionAborted("the producer's queue stays full: Kafka does not accept records") from None
                producer.poll(0.1)
            except KafkaException as error:
                if error.args[0].code() == KafkaError._UNKNOWN_PARTITION:
                    self._outdated_topics.add(topic)  # `abort` refreshes its metadata
                    raise TransactionAborted(f"produce: partition {partition} of {topic} is not known yet") from error
                raise self._refused(error, topic) from error

    def produce_all(self, topic: str, records: Iterable[tuple[bytes, bytes]], headers: Headers | None = None) -> None:
        """Queue (value, key) pairs for one topic. Hot path: calls librdkafka directly for each record."""
        produce = self._calls.instance.producer.produce
        for value, key in records:
            try:
                if headers is None:
                    produce(topic, value, key)
                else:
                    produce(topic, value, key, -1, None, None, 0, headers)
            except BufferError:
                self.produce(topic, value, key, headers=headers)
            except KafkaException as error:
                raise self._refused(error, topic) from error

    def unreachable(self, topic: str) -> str | None:
        """Return why nothing can be written to `topic` now, or None. Blocks; any thread may call it."""
        return self._calls.instance.unreachable(topic)

    def commit(self, offsets: Sequence[TopicPartition], group_metadata: object) -> None:
        """Commit the outputs and `offsets` (the next ones to read) atomically.

        Raises TransactionAborted if nothing was committed (its subclass RecordsRefused if the same records would fail again),
        OutcomeUnknown if only the group's committed offsets show the outcome, and WorkerMustRestart if another process uses
        this slot. After the first two, the next transaction may begin.

        All records are acknowledged before the offsets are sent, and Kafka rejects offsets of an earlier generation. So a
        worker of a new generation, reading up to the high watermark, sees every record that earlier generations can commit.
        """
        self._become(State.COMMITTING)
        try:
            self._decide(Step.FLUSH)
            self._decide(Step.OFFSETS, list(offsets), group_metadata)
        except TransactionAborted as error:
            self._is_refused = isinstance(error, RecordsRefused)
            self.abort()
            raise
        except InstanceLost as lost:
            # Nothing was committed, because only `commit_transaction` sends EndTxn.
            self._replace(lost)
            raise TransactionAborted(f"{Step.OFFSETS.value}: {lost}") from lost
        self._commit()

    def commit_alone(self) -> None:
        """Commit outputs without offsets. Raises like `commit`."""
        self._become(State.COMMITTING)
        self._commit()

    def abort(self) -> None:
        """Abort the open transaction. Raises WorkerMustRestart if another process uses this slot."""
        self._become(State.ABORTING)
        try:
            if self._broken is not None:
                raise InstanceLost(self._broken)
            if self._calls.is_doubtful:
                raise InstanceLost("several consecutive transactions were aborted")
            self._decide(Step.ABORT)
        except InstanceLost as lost:
            self._replace(lost)
        else:
            if not self._is_refused:  # a rejected record does not count against the instance
                self._calls.succeeded(committed=False)
            self._become(State.IDLE)
            for topic in self._outdated_topics:
                with suppress(KafkaException):  # the next abort tries again
                    self._calls.instance.producer.list_topics(topic, timeout=_METADATA_SECONDS)
        self._outdated_topics = set()

    def renew(self) -> None:
        """Replace the producer instance after an outage, while no transaction is open; blocks until the new one is ready.

        Keeps the instance if too many others are being renewed. Raises like `initialise`.
        """
        with self._calls.renewal_permit() as may_renew:
            if may_renew:
                self._replace(InstanceLost("Kafka was unavailable"))

    def close(self) -> None:
        """Make all waiting calls return soon. The next instance of this slot aborts an open transaction."""
        self._calls.closing.set()

    def _commit(self) -> None:
        try:
            self._decide(Step.COMMIT)
        except InstanceLost as lost:
            self._replace(lost)
            raise OutcomeUnknown(f"{Step.COMMIT.value}: {lost}") from lost
        self._calls.succeeded(committed=True)
        self._become(State.IDLE)

    def _decide(self, step: Step, *arguments: Any) -> None:
        try:
            self._calls.decide(step, *arguments)
        except (OutcomeUnknown, WorkerMustRestart) as error:
            self._become(State.CLOSED if isinstance(error, OutcomeUnknown) else State.FENCED)
            raise

    def _replace(self, lost: InstanceLost) -> None:
        self._become(State.REPLACING)
        self._broken = None
        try:
            self._calls.replace(lost)
        except OutcomeUnknown:
            self._become(State.CLOSED)
            raise
        self._become(State.IDLE)

    def _become(self, state: State) -> None:
        self._state = next_state(self._state, state)

    def _refused(self, error: KafkaException, topic: str) -> Exception:
        if self._calls.reaction_to(Step.PRODUCE, error.args[0]) is Reaction.RAISE:
            if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                self._is_refused = True
                return RecordTooLarge(f"a record for {topic} exceeds message.max.bytes of the producer")
            return error
        return TransactionAborted(f"produce: {error.args[0].name()}: {error.args[0].str()}")
