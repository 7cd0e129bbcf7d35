"""Decisions about the producer of a slot: legal states, reactions to errors, and how long a pending call may take.

Pure: no Kafka, no threads, no clock. `transactions.py` carries the decisions out. Sources: librdkafka's introduction
("Transactional producer"), KIP-98, KIP-360 and KIP-447; librdkafka issues 5456 and 5511 for calls that never return.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from confluent_kafka import KafkaError


class State(Enum):
    """State of the slot's producer between two calls."""

    INITIALISING = "initialising"
    """`init_transactions` of the first producer instance has not succeeded yet."""
    IDLE = "idle"
    OPEN = "open"
    COMMITTING = "committing"
    ABORTING = "aborting"
    REPLACING = "replacing"
    """The instance was discarded; the next instance runs `init_transactions`."""
    FENCED = "fenced"
    """Another process uses this slot."""
    CLOSED = "closed"


_FROM_ANY = {State.REPLACING, State.FENCED, State.CLOSED}
LEGAL: Mapping[State, frozenset[State]] = {
    State.INITIALISING: frozenset({State.IDLE, *_FROM_ANY}),
    State.IDLE: frozenset({State.OPEN, *_FROM_ANY}),
    State.OPEN: frozenset({State.COMMITTING, State.ABORTING, *_FROM_ANY}),
    State.COMMITTING: frozenset({State.IDLE, State.ABORTING, *_FROM_ANY}),
    State.ABORTING: frozenset({State.IDLE, *_FROM_ANY}),
    State.REPLACING: frozenset({State.IDLE, *_FROM_ANY}),
    State.FENCED: frozenset({State.CLOSED}),
    State.CLOSED: frozenset({State.CLOSED}),
}


class IllegalTransition(Exception):
    """A bug: the state does not allow this step."""


def next_state(now: State, wanted: State) -> State:
    """Return `wanted` if the transition is legal. Raises IllegalTransition."""
    if wanted not in LEGAL[now]:
        raise IllegalTransition(f"the producer is {now.value} and cannot become {wanted.value}")
    return wanted


class Step(Enum):
    """The calls of a transaction; the value is the name of the producer's method."""

    INITIALISE = "init_transactions"
    BEGIN = "begin_transaction"
    PRODUCE = "produce"
    FLUSH = "flush"
    OFFSETS = "send_offsets_to_transaction"
    COMMIT = "commit_transaction"
    ABORT = "abort_transaction"


class Reaction(Enum):
    """How to react to an error."""

    RETRY = "retry"
    """Repeat the same call."""
    ABORT = "abort"
    """Abort the transaction and keep the instance."""
    REPLACE = "replace"
    """Discard the instance. After COMMIT the outcome is unknown; after any other step nothing was committed."""
    FENCED = "fenced"
    """Another process uses the slot: exit."""
    RAISE = "raise"
    """Raise to the caller, for a record that cannot be sent, such as one that is too large."""


_FENCES = {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}
_UNKNOWN_TO_KAFKA = {KafkaError.INVALID_PRODUCER_ID_MAPPING, KafkaError.UNKNOWN_PRODUCER_ID}
"""The broker has expired this idle producer id. librdkafka requires an abort, but every later transaction fails, too."""


_OF_THE_RECORD = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError._INVALID_ARG, KafkaError._BAD_MSG}
"""Errors of `produce` about one record. All others concern the transaction, such as _STATE after a rejected request."""


_REFUSALS = {
    *(KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_MSG_SIZE),
    *(KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP),
}
"""Broker errors for records that the topic does not accept, such as records above its `max.message.bytes`."""


def is_refusal(error: KafkaError) -> bool:
    """Return whether the broker rejected records because of their content or size."""
    return error.code() in _REFUSALS


def is_fence(error: KafkaError) -> bool:
    """Return whether the broker has another epoch of this transactional.id."""
    return error.code() in _FENCES


def reaction_to(step: Step, error: KafkaError, is_young: bool) -> Reaction:
    """Return how to react to `error` of `step`.

    `is_young` means that the transaction is younger than its timeout, and that Kafka was reachable throughout. Only then does a
    fence mean another process. The coordinator also raises the epoch when it aborts an expired transaction, and a broker that
    lost the end of its log (full disk, power failure) has an older epoch than this producer.
    """
    if is_fence(error):
        return Reaction.FENCED if is_young and step is not Step.INITIALISE else Reaction.REPLACE
    if error.retriable() and step is not Step.PRODUCE:
        return Reaction.RETRY
    if step is Step.PRODUCE:
        return Reaction.RAISE if error.code() in _OF_THE_RECORD else Reaction.ABORT
    if step is Step.OFFSETS and error.txn_requires_abort() and error.code() not in _UNKNOWN_TO_KAFKA:
        return Reaction.ABORT
    return Reaction.REPLACE


class Probe(Enum):
    """Result of a metadata request to the cluster."""

    RESPONDS = "responds"
    SILENT = "silent"
    """Connected, but no response in time: the broker is overloaded or suspended."""
    UNREACHABLE = "unreachable"


@dataclass(slots=True)
class CallDeadline:
    """Decides when to abandon a pending call. Times are in seconds on one monotonic clock.

    After an outage, a call that is still pending after `settle_seconds` of responses hangs. Without an outage the broker is
    slow, and the call is abandoned once the coordinator must have aborted its transaction.
    """

    timeout_seconds: float
    margin_seconds: float
    settle_seconds: float
    saw_outage: bool = False
    responds_since: float | None = None

    def begin(self, outage_before: bool = False) -> None:
        """Start a call. `outage_before` means that Kafka was unreachable just before."""
        self.saw_outage = outage_before
        self.responds_since = None

    def is_exceeded(self, now: float, age_seconds: float, probe: Probe) -> bool:
        """Return whether to abandon the call. Pass each probe made while the call is pending."""
        if probe is Probe.RESPONDS:
            self.responds_since = now if self.responds_since is None else self.responds_since
        else:
            self.responds_since = None
            self.saw_outage = self.saw_outage or probe is Probe.UNREACHABLE
        if age_seconds >= self.timeout_seconds + self.margin_seconds:
            return True
        settled = self.responds_since is not None and now - self.responds_since >= self.settle_seconds
        return self.saw_outage and settled


class Outcome(Enum):
    """Outcome of a transaction."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"
    """The committed offsets match neither: another worker has moved them, and this worker has lost its partitions."""


def outcome_of(before: Mapping[object, int], after: Mapping[object, int], found: Mapping[object, int]) -> Outcome:
    """Return the outcome of a transaction according to the group's committed offsets.

    This is exact, since offsets and outputs are one transaction. `before` and `after` hold the next offset of each partition
    without and with the transaction; `found` holds the committed offsets. A negative offset means: never committed.
    """
    if all(found.get(partition) == offset for partition, offset in after.items()):
        return Outcome.COMMITTED
    if all(max(found.get(partition, -1), -1) == max(before.get(partition, -1), -1) for partition in after):
        return Outcome.ABORTED
    return Outcome.UNKNOWN
