"""Which pauses of connections are written to the ledger, and how often."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.delivery.pause_notes import PauseNotes
from pipeline.telemetry.waiting import Waiting

SINCE = 1_000.0


def failing(reason: str = "http_503") -> Waiting:
    return Waiting(False, reason, 1.0, SINCE)


def misconfigured(reason: str = "answers 401") -> Waiting:
    return Waiting(True, reason, 1.0, SINCE)


def test_misconfigured_connection_is_noted_at_once_failing_one_after_five_seconds() -> None:
    notes, key, down = PauseNotes(), misconfigured(), failing()
    board = {"crm": key, "ads": down}
    assert notes.due(board, 0.0, SINCE + 1) == [("crm", key)]
    assert notes.due(board, 4.0, SINCE + 5) == [("ads", down)]
    assert notes.due(board, 1000.0, SINCE + 1000) == []


def test_same_reason_is_noted_again_after_a_minute_and_a_new_probe() -> None:
    notes = PauseNotes()
    assert len(notes.due({"crm": failing()}, 0.0, SINCE + 10)) == 1
    assert notes.due({"crm": failing()}, 59.0, SINCE + 69) == []
    assert len(notes.due({"crm": failing()}, 60.0, SINCE + 70)) == 1


def test_new_reason_is_noted_after_ten_seconds() -> None:
    notes = PauseNotes()
    assert len(notes.due({"crm": failing()}, 0.0, SINCE + 10)) == 1
    assert notes.due({"crm": failing("timeout")}, 9.0, SINCE + 19) == []
    assert notes.due({"crm": failing("timeout")}, 10.0, SINCE + 20) == [("crm", failing("timeout"))]
    assert len(notes.due({"crm": misconfigured()}, 20.0, SINCE + 30)) == 1


def test_end_of_a_failure_is_noted_once_end_of_a_misconfiguration_is_not() -> None:
    notes = PauseNotes()
    notes.due({"crm": failing(), "ads": misconfigured(), "new": Waiting(False, "x", 1.0, SINCE + 9)}, 0.0, SINCE + 10)
    assert notes.due({}, 1.0, SINCE + 11) == [("crm", None)]
    assert notes.due({}, 2.0, SINCE + 12) == []


@pytest.mark.parametrize("waiting", [failing(), misconfigured()])
def test_lost_note_is_repeated(waiting: Waiting) -> None:
    notes = PauseNotes()
    assert notes.due({"crm": waiting}, 0.0, SINCE + 10) == [("crm", waiting)]
    notes.mark_lost("crm", waiting)
    assert notes.due({"crm": waiting}, 1.0, SINCE + 11) == []
    assert notes.due({"crm": waiting}, 10.0, SINCE + 20) == [("crm", waiting)]


def test_lost_end_of_a_pause_is_repeated_once() -> None:
    notes = PauseNotes()
    notes.due({"crm": failing()}, 0.0, SINCE + 10)
    assert notes.due({}, 1.0, SINCE + 11) == [("crm", None)]
    notes.mark_lost("crm", None)
    assert notes.due({}, 2.0, SINCE + 12) == [("crm", None)]
    assert notes.due({}, 3.0, SINCE + 13) == []


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "key"]), st.floats(0, 3)), max_size=400))
def test_notes_per_connection_are_bounded(steps: list[tuple[str, float]]) -> None:
    """At most one pause per ten seconds, however often the reason changes, and at most one end per pause."""
    notes, now = PauseNotes(), 0.0
    starts: list[float] = []
    ends = 0
    for state, seconds in steps:
        now += seconds
        board = {"crm": Waiting(state == "key", state, 1.0, SINCE)} if state else {}
        for _, waiting in notes.due(board, now, SINCE + 100 + now):
            starts += [now] if waiting is not None else []
            ends += waiting is None
        assert ends <= len(starts)
    assert all(later - first >= 10 for first, later in itertools.pairwise(starts))
