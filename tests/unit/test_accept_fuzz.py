"""Any request is answered; `python -m tests.faults.prove --fuzz 1000000` sends a million more bodies."""

from __future__ import annotations

from tests.faults.fuzz import PATHS, fuzz

BODIES = 3000


def test_no_body_breaks_the_intake() -> None:
    found = fuzz(BODIES)
    for path in PATHS:
        statuses = [found.answers[path, status] for status in (200, 204, 400, 401)]
        assert sum(statuses) == BODIES
        assert max(found.answers[path, 200], found.answers[path, 204]) > BODIES / 500, "all are refused, or none"
    assert found.answers["/track", 400] > BODIES / 500
    assert min(found.records["hit"], found.records["dead"]) > BODIES / 500
