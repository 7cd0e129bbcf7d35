"""Tests of the answer of /healthz, with a fake clock."""

from __future__ import annotations

from pipeline.telemetry.liveness import LOOP_SECONDS, Liveness


def test_event_loop_without_a_turn_hangs_but_not_before_its_first_turn() -> None:
    liveness = Liveness()
    assert liveness.hangs(1000.0) == [], "the process is starting"
    liveness.beat(1000.0)
    assert liveness.hangs(1000.0 + LOOP_SECONDS) == []
    assert liveness.hangs(1031.0) == ["event loop: hangs: it has not turned for 31 s"]
    liveness.beat(1031.0)
    assert liveness.hangs(1032.0) == []


def test_hangs_of_sources_are_reported_until_the_process_stops() -> None:
    stops = False
    liveness = Liveness()
    liveness.add(lambda now: [f"crm: hangs: at {now:.0f}"])
    liveness.add_stop(lambda: stops)
    liveness.beat(0.0)
    assert liveness.hangs(50.0) == ["event loop: hangs: it has not turned for 50 s", "crm: hangs: at 50"]
    stops = True
    assert liveness.hangs(50.0) == []
