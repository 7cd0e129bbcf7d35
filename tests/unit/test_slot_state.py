"""Tests of the decisions about a slot's producer, without Kafka."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.slot_state import (
    LEGAL,
    CallDeadline,
    IllegalTransition,
    Outcome,
    Probe,
    Reaction,
    State,
    Step,
    next_state,
    outcome_of,
    reaction_to,
)

FATAL = KafkaError(KafkaError._FATAL, "fatal", fatal=True)
ABORTABLE = KafkaError(KafkaError.ILLEGAL_GENERATION, "generation", txn_requires_abort=True)
FORGOTTEN = KafkaError(KafkaError.INVALID_PRODUCER_ID_MAPPING, "expired", txn_requires_abort=True)
RETRIABLE = KafkaError(KafkaError._TIMED_OUT, "time-out", retriable=True)
PLAIN = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "too large")
FENCES = [KafkaError(code, "epoch") for code in (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, 90)]


@given(st.sampled_from(State), st.sampled_from(State))
def test_only_legal_transitions_are_taken(now: State, wanted: State) -> None:
    if wanted in LEGAL[now]:
        assert next_state(now, wanted) is wanted
    else:
        with pytest.raises(IllegalTransition, match=f"{now.value} and cannot become {wanted.value}"):
            next_state(now, wanted)


def test_a_transaction_begins_on_an_idle_producer_only_and_every_state_can_close() -> None:
    assert [state for state in State if State.OPEN in LEGAL[state]] == [State.IDLE]
    assert all(State.CLOSED in LEGAL[state] for state in State)
    assert LEGAL[State.FENCED] == {State.CLOSED}


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("error", FENCES)
def test_only_a_fence_of_a_young_transaction_means_another_process(step: Step, error: KafkaError) -> None:
    expected = Reaction.REPLACE if step is Step.INITIALISE else Reaction.FENCED
    assert reaction_to(step, error, is_young=True) is expected
    assert reaction_to(step, error, is_young=False) is Reaction.REPLACE


@pytest.mark.parametrize(
    ("step", "error", "reaction"),
    [
        (Step.OFFSETS, ABORTABLE, Reaction.ABORT),
        (Step.OFFSETS, RETRIABLE, Reaction.RETRY),
        (Step.OFFSETS, FORGOTTEN, Reaction.REPLACE),
        (Step.OFFSETS, FATAL, Reaction.REPLACE),
        # EndTxn may have been carried out although the transaction had failed locally.
        (Step.COMMIT, ABORTABLE, Reaction.REPLACE),
        (Step.COMMIT, RETRIABLE, Reaction.RETRY),
        (Step.COMMIT, FATAL, Reaction.REPLACE),
        (Step.ABORT, ABORTABLE, Reaction.REPLACE),
        (Step.ABORT, RETRIABLE, Reaction.RETRY),
        (Step.INITIALISE, RETRIABLE, Reaction.RETRY),
        (Step.INITIALISE, FATAL, Reaction.REPLACE),
        (Step.PRODUCE, ABORTABLE, Reaction.ABORT),
        (Step.PRODUCE, FATAL, Reaction.ABORT),
        (Step.PRODUCE, KafkaError(KafkaError._STATE, "Erroneous state"), Reaction.ABORT),
        (Step.PRODUCE, KafkaError(KafkaError._UNKNOWN_TOPIC, "unknown"), Reaction.ABORT),
        (Step.PRODUCE, PLAIN, Reaction.RAISE),
        (Step.PRODUCE, KafkaError(KafkaError._INVALID_ARG, "invalid"), Reaction.RAISE),
    ],
)
def test_the_reaction_to_an_error(step: Step, error: KafkaError, reaction: Reaction) -> None:
    assert reaction_to(step, error, is_young=True) is reaction


def deadline() -> CallDeadline:
    begun = CallDeadline(timeout_seconds=10.0, margin_seconds=2.0, settle_seconds=3.0)
    begun.begin()
    return begun


@given(st.lists(st.tuples(st.floats(0.1, 2.0), st.sampled_from([Probe.RESPONDS, Probe.SILENT])), max_size=30))
def test_a_call_to_a_slow_broker_is_abandoned_once_the_transaction_has_expired(
    ticks: list[tuple[float, Probe]],
) -> None:
    waiting, now = deadline(), 0.0
    for seconds, probe in ticks:
        now += seconds
        assert waiting.is_exceeded(now, age_seconds=now, probe=probe) == (now >= 12.0)


def test_after_an_outage_a_call_that_stays_pending_for_a_few_seconds_is_abandoned() -> None:
    waiting = deadline()
    assert not any(waiting.is_exceeded(now, now, Probe.UNREACHABLE) for now in (1.0, 2.0))
    assert not waiting.is_exceeded(3.0, 3.0, Probe.RESPONDS)
    assert not waiting.is_exceeded(5.9, 5.9, Probe.RESPONDS)
    assert waiting.is_exceeded(6.0, 6.0, Probe.RESPONDS)


def test_a_second_outage_restarts_the_wait() -> None:
    waiting = deadline()
    waiting.is_exceeded(1.0, 1.0, Probe.UNREACHABLE)
    waiting.is_exceeded(2.0, 2.0, Probe.RESPONDS)
    waiting.is_exceeded(4.0, 4.0, Probe.SILENT)
    assert not waiting.is_exceeded(5.5, 5.5, Probe.RESPONDS)
    assert waiting.is_exceeded(8.5, 8.5, Probe.RESPONDS)


def test_an_outage_just_before_the_call_counts() -> None:
    waiting = deadline()
    waiting.begin(outage_before=True)
    assert not waiting.is_exceeded(1.0, 1.0, Probe.RESPONDS)
    assert waiting.is_exceeded(4.0, 4.0, Probe.RESPONDS)


def test_a_call_of_an_expired_transaction_is_abandoned_even_during_an_outage() -> None:
    assert not deadline().is_exceeded(11.9, 11.9, Probe.UNREACHABLE)
    assert deadline().is_exceeded(12.0, 12.0, Probe.UNREACHABLE)


def test_the_committed_offsets_determine_the_outcome() -> None:
    before, after = {"a": 5, "b": 0}, {"a": 9, "b": 3}
    assert outcome_of(before, after, {"a": 9, "b": 3}) is Outcome.COMMITTED
    assert outcome_of(before, after, {"a": 5, "b": 0}) is Outcome.ABORTED
    assert outcome_of(before, after, {"a": 9, "b": 0}) is Outcome.UNKNOWN
    assert outcome_of(before, after, {"a": 12, "b": 3}) is Outcome.UNKNOWN
    assert outcome_of({"a": -1}, {"a": 4}, {"a": -1001}) is Outcome.ABORTED
