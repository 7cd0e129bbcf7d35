"""The verdict on an outage, so that the proof can fail: answers of a made-up run, and what is wrong with each."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.outage import OnFailure, Outage


def run_of(on_failure: OnFailure, killed: bool) -> Outage:
    """One hit a second for 40 s; Kafka away from 10 to 30, the intake down from 19.5 to 21.5. The promise is kept."""
    outage = Outage(on_failure, killed, away=(10.0, 30.0), down=(19.5, 21.5) if killed else (0.0, 0.0))
    for second in range(40):
        away = on_failure == "reject" and 10 <= second < 30
        outage.sent_at[f"{second}"] = second
        outage.answers[f"{second}"] = 0 if killed and second in (20, 21) else 503 if away else 204
    outage.stored = Counter(name for name, status in outage.answers.items() if status == 204)
    return outage


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("on_failure", ["reject", "spill"])
def test_a_promise_that_was_kept_has_no_problem(on_failure: OnFailure, killed: bool) -> None:
    assert run_of(on_failure, killed).problems == []


@pytest.mark.parametrize(
    ("on_failure", "second", "status", "said"),
    [
        ("reject", "15", 204, "only 503 is right"),
        ("spill", "15", 503, "not allowed"),
        ("reject", "5", 500, "not allowed"),
        ("reject", "12", 0, "not allowed"),
        ("spill", "28", 0, "not allowed"),
    ],
)
def test_another_answer_is_a_problem(on_failure: OnFailure, second: str, status: int, said: str) -> None:
    outage = run_of(on_failure, killed=True)
    outage.answers[second] = status
    outage.stored[second] = 1
    assert any(said in problem for problem in outage.problems)


def test_a_lost_hit_is_a_problem() -> None:
    outage = run_of("spill", killed=False)
    del outage.stored["15"]
    (problem,) = outage.problems
    assert "['15']" in problem


@pytest.mark.parametrize("seconds", [range(10), range(31, 40), range(22, 40)])
def test_a_run_without_answers_before_during_or_after_proves_nothing(seconds: range) -> None:
    outage = run_of("reject", killed=True)
    for second in seconds:
        del outage.answers[f"{second}"]
    assert outage.problems
