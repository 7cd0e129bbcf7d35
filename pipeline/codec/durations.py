"""Durations as readable text."""

from __future__ import annotations

from itertools import pairwise

_UNITS_MS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1))


def duration_text(milliseconds: int) -> str:
    """Return a duration in its largest unit and the next smaller one, rounded down: `1 d 22 h`, `45 min`, `0 s`."""
    for (unit, unit_ms), (smaller, smaller_ms) in pairwise(_UNITS_MS):
        if milliseconds >= unit_ms:
            rest = milliseconds % unit_ms // smaller_ms
            return f"{milliseconds // unit_ms} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{milliseconds} ms" if milliseconds > 0 else "0 s"
