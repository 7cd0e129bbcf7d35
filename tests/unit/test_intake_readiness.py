"""The intake is ready while it can store a hit; one row per condition."""

from __future__ import annotations

import pytest

from pipeline.intake.readiness import Spill, Stores, conditions_of

ROOM, NO_ROOM = Spill(None, 4096), Spill("2147483648 bytes wait", 2_147_483_648)


@pytest.mark.parametrize(
    ("topics", "kafka", "spill", "ready", "lines"),
    [
        (None, None, None, True, []),
        (None, None, ROOM, True, []),
        (None, None, NO_ROOM, True, []),
        ("not checked", None, None, False, ["topics: unchecked: not checked"]),
        (None, "no answer", None, False, ["kafka: away: no answer (for 7 s)"]),
        (
            *("not checked", "no answer", None, False),
            ["topics: unchecked: not checked", "kafka: away: no answer (for 7 s)"],
        ),
        (
            *(None, "no answer", ROOM, True),
            ["kafka: spilling: no answer; hits go to this machine's disk, where 4096 bytes wait (for 7 s)"],
        ),
        (
            *(None, "no answer", NO_ROOM, False),
            ["spill: full: 2147483648 bytes wait", "kafka: away: no answer (for 7 s)"],
        ),
    ],
    ids=["well", "well, spill", "a full spill alone", "topics", "away", "both", "spilling", "away and full"],
)
def test_it_is_ready_while_kafka_or_the_disk_takes_hits(
    topics: str | None, kafka: str | None, spill: Spill | None, ready: bool, lines: list[str]
) -> None:
    found = list(conditions_of(Stores(topics, kafka, 3.0 if kafka else None, spill)))
    assert any(condition.state.blocks for condition in found) is not ready
    assert [condition.line(10.0) for condition in found] == lines
