"""One transactional producer per worker: begin, outputs, offsets, commit; and what each error demands.

The rules are librdkafka's (its INTRODUCTION.md, "Transactional producer", and KIP-447): a retriable error is
answered by the same call again, an abortable one by an abort and a read from the committed offsets, and anything
else (fenced, fatal) by the end of the process, because this producer can never again write safely.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaException, Producer, TopicPartition

from pipeline.codec.raw_record import Headers
from pipeline.config.models import KafkaConfig
from pipeline.errors import TransactionAborted, WorkerMustRestart
from pipeline.kafka.client import client_properties, reaches_kafka

logger = logging.getLogger("hitrouter.kafka.transactions")

CALL_SECONDS = 10.0
"""How long one blocking call may take before it is called again."""
TRANSACTION_TIMEOUT_MS = 10_000
"""After this the broker aborts a transaction whose worker is gone; readers wait no longer than this."""


class TransactionalProducer:
    """A producer whose life is a line of transactions.

    `transactional_id` names the seat of this worker: a successor with the same id ends what its predecessor left open.
    Every method but `produce` blocks on the network; call them from one thread.
    """

    def __init__(self, kafka: KafkaConfig, transactional_id: str, **properties: Any) -> None:
        self.transactional_id = transactional_id
        self._producer = Producer(
            client_properties(
                kafka,
                **{
                    "transactional__id": transactional_id,
                    "transaction__timeout__ms": TRANSACTION_TIMEOUT_MS,
                    "compression__type": "lz4",
                    "linger__ms": 2,
                    # The markers of the previous transaction may still be on their way: ask again soon (default 100 ms).
                    "retry__backoff__ms": 10,
                    "batch__size": 1_000_000,
                    "queue__buffering__max__messages": 500_000,
                    **properties,
                },
            )
        )

    def initialise(self) -> None:
        """End what a former life of this seat left open, and fence it off. Call before joining the group."""
        self._settle(self._producer.init_transactions, CALL_SECONDS)

    def begin(self) -> None:
        """Open a transaction; local, does not block."""
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            raise WorkerMustRestart(f"a transaction can't begin: {error.args[0].str()}") from error

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Headers | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        """Queue one record in the open transaction; partition -1 lets the key decide (CRC32)."""
        while True:
            try:
                if headers is None and not timestamp_ms:
                    self._producer.produce(topic, value, key, partition)
                else:
                    self._producer.produce(topic, value, key, partition, None, None, timestamp_ms, headers)
                return
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                raise self._classified("produce", error) from error

    def produce_all(self, topic: str, records: Iterable[tuple[bytes, bytes]], headers: Headers | None = None) -> None:
        """Queue (value, key) pairs for one topic: the hot path, without a call of ours per record."""
        produce = self._producer.produce
        for value, key in records:
            try:
                if headers is None:
                    produce(topic, value, key)
                else:
                    produce(topic, value, key, -1, None, None, 0, headers)
            except BufferError:
                self.produce(topic, value, key, headers=headers)
            except KafkaException as error:
                raise self._classified("produce", error) from error

    def reaches_kafka(self) -> bool:
        """Does a broker answer within a second? May be called from any thread while another call blocks."""
        return reaches_kafka(self._producer)

    def commit(self, offsets: Sequence[TopicPartition], group_metadata: object) -> None:
        """Make outputs and `offsets` (next to read) visible as one. Raises TransactionAborted after an abort."""
        try:
            self._settle(self._producer.send_offsets_to_transaction, list(offsets), group_metadata, CALL_SECONDS)
            self._settle(self._producer.commit_transaction, CALL_SECONDS)
        except TransactionAborted:
            self.abort()
            raise

    def commit_alone(self) -> None:
        """Make outputs visible that answer no records of a group. Raises TransactionAborted after an abort."""
        try:
            self._settle(self._producer.commit_transaction, CALL_SECONDS)
        except TransactionAborted:
            self.abort()
            raise

    def abort(self) -> None:
        """Take the open transaction back."""
        self._settle(self._producer.abort_transaction, CALL_SECONDS)

    def _settle(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call until it is decided: a time-out of a commit, too, is answered by the same call."""
        while True:
            try:
                call(*arguments)
                return
            except KafkaException as error:
                with suppress(KafkaException):  # poll raises a fatal error, too; ours says what to do
                    self._producer.poll(0)  # what librdkafka has logged
                if error.args[0].retriable():
                    logger.warning("%s is tried again: %s", call.__name__, error.args[0].str())
                    continue
                raise self._classified(call.__name__, error) from error

    def _classified(self, what: str, error: KafkaException) -> Exception:
        kafka_error = error.args[0]
        if kafka_error.txn_requires_abort():
            return TransactionAborted(f"{what}: {kafka_error.name()}: {kafka_error.str()}")
        return WorkerMustRestart(
            f"{what} as {self.transactional_id}: {kafka_error.name()}: {kafka_error.str()}; "
            "if another process runs with this slot, give each its own"
        )
