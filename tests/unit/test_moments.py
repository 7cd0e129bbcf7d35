"""Formatting of durations."""

from __future__ import annotations

import pytest

from pipeline.operations.moments import duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (42, "42 s"),
        (60, "1 min"),
        (190, "3 min 10 s"),
        (3600, "1 h"),
        (5 * 86400 + 2 * 3600 + 59 * 60, "5 d 2 h"),
        (86400, "1 d"),
        (86400 + 59, "1 d"),
    ],
)
def test_duration_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
