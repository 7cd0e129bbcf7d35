"""What /healthz answers, with a clock of the test's own."""

from __future__ import annotations

from pipeline.telemetry.liveness import LOOP_SECONDS, Liveness


def test_a_loop_that_does_not_turn_hangs_once_it_has_turned() -> None:
    liveness = Liveness()
    assert liveness.hangs(1000.0) == [], "it starts"
    liveness.beat(1000.0)
    assert liveness.hangs(1000.0 + LOOP_SECONDS) == []
    assert liveness.hangs(1031.0) == ["event loop: hangs: it has not turned for 31 s"]
    liveness.beat(1031.0)
    assert liveness.hangs(1032.0) == []


def test_what_hangs_elsewhere_is_named_until_the_process_stops() -> None:
    stops = False
    liveness = Liveness()
    liveness.add(lambda now: [f"crm: hangs: at {now:.0f}"])
    liveness.add_stop(lambda: stops)
    liveness.beat(0.0)
    assert liveness.hangs(50.0) == ["event loop: hangs: it has not turned for 50 s", "crm: hangs: at 50"]
    stops = True
    assert liveness.hangs(50.0) == []
