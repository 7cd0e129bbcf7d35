"""The decisions about a slot's producer, without Kafka."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.slot_state import (
    LEGAL,
    Demand,
    IllegalTransition,
    Outcome,
    Patience,
    Probe,
    State,
    Step,
    demand_of,
    next_state,
    outcome_of,
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
def test_only_a_fence_of_a_young_transaction_is_another_process(step: Step, error: KafkaError) -> None:
    expected = Demand.REPLACE if step is Step.INITIALISE else Demand.FENCED
    assert demand_of(step, error, is_young=True) is expected
    assert demand_of(step, error, is_young=False) is Demand.REPLACE


@pytest.mark.parametrize(
    ("step", "error", "demand"),
    [
        (Step.OFFSETS, ABORTABLE, Demand.ABORT),
        (Step.OFFSETS, RETRIABLE, Demand.AGAIN),
        (Step.OFFSETS, FORGOTTEN, Demand.REPLACE),
        (Step.OFFSETS, FATAL, Demand.REPLACE),
        # EndTxn may have been carried out although the transaction had failed locally.
        (Step.COMMIT, ABORTABLE, Demand.REPLACE),
        (Step.COMMIT, RETRIABLE, Demand.AGAIN),
        (Step.COMMIT, FATAL, Demand.REPLACE),
        (Step.ABORT, ABORTABLE, Demand.REPLACE),
        (Step.ABORT, RETRIABLE, Demand.AGAIN),
        (Step.INITIALISE, RETRIABLE, Demand.AGAIN),
        (Step.INITIALISE, FATAL, Demand.REPLACE),
        (Step.PRODUCE, ABORTABLE, Demand.ABORT),
        (Step.PRODUCE, FATAL, Demand.ABORT),
        (Step.PRODUCE, KafkaError(KafkaError._STATE, "Erroneous state"), Demand.ABORT),
        (Step.PRODUCE, KafkaError(KafkaError._UNKNOWN_TOPIC, "unknown"), Demand.ABORT),
        (Step.PRODUCE, PLAIN, Demand.RAISE),
        (Step.PRODUCE, KafkaError(KafkaError._INVALID_ARG, "invalid"), Demand.RAISE),
    ],
)
def test_an_error_demands(step: Step, error: KafkaError, demand: Demand) -> None:
    assert demand_of(step, error, is_young=True) is demand


def patience() -> Patience:
    begun = Patience(timeout_seconds=10.0, margin_seconds=2.0, settle_seconds=3.0)
    begun.begin()
    return begun


@given(st.lists(st.tuples(st.floats(0.1, 2.0), st.sampled_from([Probe.ANSWERS, Probe.SILENT])), max_size=30))
def test_a_slow_broker_is_waited_for_until_it_has_ended_the_transaction_itself(
    ticks: list[tuple[float, Probe]],
) -> None:
    waiting, now = patience(), 0.0
    for seconds, probe in ticks:
        now += seconds
        assert waiting.is_over(now, age_seconds=now, probe=probe) == (now >= 12.0)


def test_after_an_outage_a_call_that_stays_undecided_for_a_few_seconds_hangs() -> None:
    waiting = patience()
    assert not any(waiting.is_over(now, now, Probe.UNREACHABLE) for now in (1.0, 2.0))
    assert not waiting.is_over(3.0, 3.0, Probe.ANSWERS)
    assert not waiting.is_over(5.9, 5.9, Probe.ANSWERS)
    assert waiting.is_over(6.0, 6.0, Probe.ANSWERS)


def test_a_second_outage_begins_the_wait_again() -> None:
    waiting = patience()
    waiting.is_over(1.0, 1.0, Probe.UNREACHABLE)
    waiting.is_over(2.0, 2.0, Probe.ANSWERS)
    waiting.is_over(4.0, 4.0, Probe.SILENT)
    assert not waiting.is_over(5.5, 5.5, Probe.ANSWERS)
    assert waiting.is_over(8.5, 8.5, Probe.ANSWERS)


def test_an_outage_just_before_the_call_counts() -> None:
    waiting = patience()
    waiting.begin(outage_before=True)
    assert not waiting.is_over(1.0, 1.0, Probe.ANSWERS)
    assert waiting.is_over(4.0, 4.0, Probe.ANSWERS)


def test_a_transaction_older_than_its_time_out_is_given_up_even_while_kafka_is_away() -> None:
    assert not patience().is_over(11.9, 11.9, Probe.UNREACHABLE)
    assert patience().is_over(12.0, 12.0, Probe.UNREACHABLE)


def test_the_groups_offsets_tell_the_outcome() -> None:
    before, after = {"a": 5, "b": 0}, {"a": 9, "b": 3}
    assert outcome_of(before, after, {"a": 9, "b": 3}) is Outcome.COMMITTED
    assert outcome_of(before, after, {"a": 5, "b": 0}) is Outcome.ABORTED
    assert outcome_of(before, after, {"a": 9, "b": 0}) is Outcome.UNKNOWN
    assert outcome_of(before, after, {"a": 12, "b": 3}) is Outcome.UNKNOWN
    assert outcome_of({"a": -1}, {"a": 4}, {"a": -1001}) is Outcome.ABORTED
