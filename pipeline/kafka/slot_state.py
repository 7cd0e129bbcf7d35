"""Decisions about the producer of a slot: legal states, what an error demands, how long an undecided call may take.

Pure: no Kafka, no thread, no clock. `transactions.py` acts on it. Sources: the introduction of librdkafka ("Transactional
producer"), KIP-98, KIP-360 and KIP-447; librdkafka issues 5456 and 5511 for calls that never return.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from confluent_kafka import KafkaError


class State(Enum):
    """Where the slot's producer stands between two calls."""

    INITIALISING = "initialising"
    """`init_transactions` of the first instance has not succeeded yet."""
    IDLE = "idle"
    OPEN = "open"
    COMMITTING = "committing"
    ABORTING = "aborting"
    REPLACING = "replacing"
    """The instance was thrown away; its successor runs `init_transactions`."""
    FENCED = "fenced"
    """Another process uses this slot."""
    CLOSED = "closed"


_WORKING = {State.REPLACING, State.FENCED, State.CLOSED}
LEGAL: Mapping[State, frozenset[State]] = {
    State.INITIALISING: frozenset({State.IDLE, *_WORKING}),
    State.IDLE: frozenset({State.OPEN, *_WORKING}),
    State.OPEN: frozenset({State.COMMITTING, State.ABORTING, *_WORKING}),
    State.COMMITTING: frozenset({State.IDLE, State.ABORTING, *_WORKING}),
    State.ABORTING: frozenset({State.IDLE, *_WORKING}),
    State.REPLACING: frozenset({State.IDLE, *_WORKING}),
    State.FENCED: frozenset({State.CLOSED}),
    State.CLOSED: frozenset({State.CLOSED}),
}


class IllegalTransition(Exception):
    """A bug: a step was taken in a state that does not allow it."""


def next_state(now: State, wanted: State) -> State:
    """`wanted`, if the transition is legal. Raises IllegalTransition."""
    if wanted not in LEGAL[now]:
        raise IllegalTransition(f"the producer is {now.value} and cannot become {wanted.value}")
    return wanted


class Step(Enum):
    """The blocking calls of a transaction, by name."""

    INITIALISE = "init_transactions"
    BEGIN = "begin_transaction"
    PRODUCE = "produce"
    FLUSH = "flush"
    OFFSETS = "send_offsets_to_transaction"
    COMMIT = "commit_transaction"
    ABORT = "abort_transaction"


class Demand(Enum):
    """What an error demands."""

    AGAIN = "again"
    """Make the same call again."""
    ABORT = "abort"
    """Abort the transaction; the instance stays usable."""
    REPLACE = "replace"
    """Throw the instance away. After COMMIT the outcome is unknown, after all other steps nothing was committed."""
    FENCED = "fenced"
    """Another process has the slot: end this one."""
    RAISE = "raise"
    """The caller's mistake, such as a record that is too large."""


_FENCES = {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}
_UNKNOWN_TO_KAFKA = {KafkaError.INVALID_PRODUCER_ID_MAPPING, KafkaError.UNKNOWN_PRODUCER_ID}
"""The broker has forgotten this producer, after some quiet days. librdkafka says "abort", and fails again and again after it."""


_OF_THE_RECORD = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError._INVALID_ARG, KafkaError._BAD_MSG}
"""What `produce` says of a record. Everything else is about the transaction, such as _STATE once Kafka has refused a part of it."""


_REFUSALS = {
    *(KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_MSG_SIZE),
    *(KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP),
}
"""What a broker says of records that its topic does not take, such as ones above the topic's own `max.message.bytes`."""


def is_refusal(error: KafkaError) -> bool:
    """Says whether the broker has refused records for what they hold."""
    return error.code() in _REFUSALS


def is_fence(error: KafkaError) -> bool:
    """Says whether the broker knows a newer epoch of this transactional.id."""
    return error.code() in _FENCES


def demand_of(step: Step, error: KafkaError, is_young: bool) -> Demand:
    """What `error` demands after `step`.

    `is_young`: the transaction is younger than its time-out, and Kafka was reachable all the time. Only then does a fence mean
    another process: the coordinator also raises the epoch to end a transaction that is too old, and a broker that lost the end
    of its log (a full disk, a power failure) knows an older epoch than ours.
    """
    if is_fence(error):
        return Demand.FENCED if is_young and step is not Step.INITIALISE else Demand.REPLACE
    if error.retriable() and step is not Step.PRODUCE:
        return Demand.AGAIN
    if step is Step.PRODUCE:
        return Demand.RAISE if error.code() in _OF_THE_RECORD else Demand.ABORT
    if step is Step.OFFSETS and error.txn_requires_abort() and error.code() not in _UNKNOWN_TO_KAFKA:
        return Demand.ABORT
    return Demand.REPLACE


class Probe(Enum):
    """What a metadata request to the cluster found."""

    ANSWERS = "answers"
    SILENT = "silent"
    """Connected, but no answer in time: overload, or a broker that is stopped."""
    UNREACHABLE = "unreachable"


@dataclass(slots=True)
class Patience:
    """Says when an undecided call must be given up. Times are in seconds on one monotonic clock.

    After an outage `settle_seconds` with answers suffice: what is undecided then, hangs. Without an outage the broker is slow:
    the call is given up once the coordinator has ended its transaction anyway.
    """

    timeout_seconds: float
    margin_seconds: float
    settle_seconds: float
    saw_outage: bool = False
    answers_since: float | None = None

    def begin(self, outage_before: bool = False) -> None:
        """A call begins; `outage_before`: Kafka was unreachable a moment ago."""
        self.saw_outage = outage_before
        self.answers_since = None

    def is_over(self, now: float, age_seconds: float, probe: Probe) -> bool:
        """True when the call must be given up; call it with each probe while it is undecided."""
        if probe is Probe.ANSWERS:
            self.answers_since = now if self.answers_since is None else self.answers_since
        else:
            self.answers_since = None
            self.saw_outage = self.saw_outage or probe is Probe.UNREACHABLE
        if age_seconds >= self.timeout_seconds + self.margin_seconds:
            return True
        settled = self.answers_since is not None and now - self.answers_since >= self.settle_seconds
        return self.saw_outage and settled


class Outcome(Enum):
    """What became of a transaction."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"
    """Others have moved the group's offsets since: this worker's partitions are gone."""


def outcome_of(before: Mapping[object, int], after: Mapping[object, int], found: Mapping[object, int]) -> Outcome:
    """Read the outcome from the group's committed offsets. Exact: offsets and outputs are one transaction.

    `before` and `after` hold the next offset of each partition of the transaction, `found` what Kafka has now. A negative
    offset means that the group has never committed one.
    """
    if all(found.get(partition) == offset for partition, offset in after.items()):
        return Outcome.COMMITTED
    if all(max(found.get(partition, -1), -1) == max(before.get(partition, -1), -1) for partition in after):
        return Outcome.ABORTED
    return Outcome.UNKNOWN
