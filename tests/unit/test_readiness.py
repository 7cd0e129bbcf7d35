"""Tests of the answer of /readyz, with a fake clock."""

from __future__ import annotations

import pytest

from pipeline.telemetry.members import Member, Members
from pipeline.telemetry.progress import STALL_SECONDS
from pipeline.telemetry.readiness import REFUSED_LINES, Readiness, State, refused_file, stopping


def test_process_without_conditions_is_ready() -> None:
    verdict = Readiness().verdict(5.0)
    assert (verdict.ready, verdict.text) == (True, "ready\n")


def test_condition_keeps_its_start_time_while_its_reason_changes() -> None:
    readiness = Readiness()
    readiness.begin("kafka", State.AWAY, "no broker responds", 10.0)
    readiness.begin("kafka", State.AWAY, "no leader\nat all", 15.0)
    assert readiness.verdict(22.0).text == "not ready\nkafka: away: no leader at all (for 12 s)\n"
    readiness.end("kafka", State.AWAY)
    readiness.end("kafka", State.AWAY)
    assert readiness.verdict(23.0).ready


@pytest.mark.parametrize("state", State, ids=lambda state: state.label)
def test_only_blocking_states_make_it_not_ready_and_all_states_are_listed(state: State) -> None:
    readiness = Readiness()
    readiness.begin("part", state, "why", 0.0)
    verdict = readiness.verdict(0.0)
    waits_for_others = {State.SPILLING, State.IDLE, State.SENDING, State.FAILING, State.MISCONFIGURED}
    assert verdict.ready is (state in waits_for_others)
    assert verdict.lines == (f"part: {state.label}: why (for 0 s)",)


def test_blocking_lines_come_first_and_are_sorted_by_name() -> None:
    readiness = Readiness()
    for name, state in (("b", State.FAILING), ("a", State.MISCONFIGURED), ("z", State.JOINING), ("y", State.STALLED)):
        readiness.begin(name, state, "why", 0.0)
    assert [line.split(":")[0] for line in readiness.verdict(0.0).lines] == ["y", "z", "a", "b"]


def test_problems_of_a_refused_file_are_listed_in_order_up_to_a_limit() -> None:
    problems: list[str] | None = [f"h.yaml:{line}: unknown key" for line in range(1, REFUSED_LINES + 3)]
    readiness = Readiness()
    readiness.add(refused_file(lambda: problems))
    verdict = readiness.verdict(0.0)
    assert not verdict.ready
    assert verdict.lines[:2] == (
        "configuration: refused: h.yaml:1: unknown key",
        "configuration: refused: h.yaml:2: unknown key",
    )
    assert verdict.lines[REFUSED_LINES:] == ("configuration: refused: and 2 more problems",)
    problems = None
    assert readiness.verdict(0.0).ready


def test_stopping_process_is_not_ready() -> None:
    stops = False
    readiness = Readiness()
    readiness.add(stopping(lambda: stops))
    assert readiness.verdict(0.0).ready
    stops = True
    assert readiness.verdict(0.0).lines[0].startswith("process: stopping: ")


def labels(member: Member, now: float) -> list[str]:
    return [condition.state.label for condition in member.conditions(now)]


def test_member_is_ready_while_it_reads_its_partitions_and_not_between_assignments() -> None:
    member = Member("hits-raw", 0.0)
    assert [condition.line(3.0) for condition in member.conditions(3.0)] == [
        "hits-raw: joining: it has no assignment from its consumer group yet (for 3 s)"
    ]
    member.rebuilding(4, 5.0)
    assert [condition.line(9.0) for condition in member.conditions(9.0)] == [
        "hits-raw: rebuilding: the state of 4 partitions is being read (for 4 s)"
    ]
    member.joined(10.0)
    assert labels(member, 11.0) == []
    member.joining(20.0)
    assert labels(member, 20.0) == ["joining"]


def test_worker_without_partitions_is_ready_and_reports_why_it_is_idle() -> None:
    member = Member("hits-raw", 0.0)
    member.rebuilding(0, 1.0)
    member.joined(1.0)
    (condition,) = member.conditions(500.0)
    assert condition.state is State.IDLE and not condition.state.blocks
    assert "more workers than partitions" in condition.reason


def at_work(now: float = 0.0) -> Member:
    member = Member("crm", now)
    member.rebuilding(2, now)
    member.joined(now)
    return member


def watch(member: Member, begin: int, end: int, waiting: bool = True, committed_at: float | None = None) -> None:
    for second in range(begin, end + 1, 2):
        member.observe(waiting, committed_at, float(second))


def test_backlog_without_a_commit_for_a_minute_is_a_stall_that_a_commit_ends() -> None:
    member = at_work()
    watch(member, 100, 158)
    assert labels(member, 159.9) == []
    assert labels(member, 160.0) == ["stalled"]
    (condition,) = member.conditions(175.0)
    assert condition.line(175.0) == "crm: stalled: records wait, but no batch was committed (for 75 s)"
    watch(member, 176, 234, committed_at=175.0)
    assert labels(member, 234.0) == []
    assert labels(member, 175.0 + STALL_SECONDS) == ["stalled"]


def test_idle_time_and_the_first_hit_after_it_are_not_a_stall() -> None:
    member = at_work()
    watch(member, 12, 30_000, waiting=False, committed_at=10.0)
    assert labels(member, 30_000.0) == []
    member.observe(True, 10.0, 30_002.0)
    member.observe(True, 10.0, 30_004.0)
    assert labels(member, 30_004.0) == []


def test_worker_with_a_permanent_backlog_is_ready_while_it_commits() -> None:
    member = at_work()
    for second in range(0, 600, 2):
        member.observe(True, second - 1.0, float(second))
        assert labels(member, float(second)) == []


def test_batch_being_sent_is_shown_but_not_a_stall() -> None:
    member = at_work()
    member.sending(0.0)
    watch(member, 0, 600)
    (condition,) = member.conditions(600.0)
    assert (condition.state, condition.state.blocks) == (State.SENDING, False)
    member.sent()
    assert labels(member, 600.0) == []
    watch(member, 601, 601 + round(STALL_SECONDS))
    assert labels(member, 601 + STALL_SECONDS) == ["stalled"], "its commit hangs"


def test_new_assignment_restarts_the_stall_time() -> None:
    member = at_work()
    watch(member, 0, 58)
    member.joining(58.0)
    watch(member, 58, 120)
    assert labels(member, 120.0) == ["joining"], "nothing can be committed meanwhile"
    member.rebuilding(2, 121.0)
    member.joined(122.0)
    watch(member, 122, 124)
    assert labels(member, 124.0) == []


def test_every_wanted_connection_must_join_and_removed_ones_are_dropped() -> None:
    members = Members()
    members.want(["crm", "files"], 0.0)
    for name in ("crm", "files"):
        assert name in {condition.name for condition in members.conditions(0.0)}
    members.get("crm", 1.0).rebuilding(1, 1.0)
    members.get("crm", 1.0).joined(1.0)
    assert [condition.name for condition in members.conditions(1.0)] == ["files"]
    members.want(["crm", "new"], 2.0)
    assert [condition.name for condition in members.conditions(2.0)] == ["new"]
    members.want([], 3.0)
    assert not list(members.conditions(3.0)), "a deliver process without connections is ready"
