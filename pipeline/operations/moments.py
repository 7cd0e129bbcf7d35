"""Parses points in time from the command line, and formats durations."""

from __future__ import annotations

import re
import time

from pipeline.codec.routed_hit import read_time

_AGO = re.compile(r"(\d+)\s*([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def read_moment(text: str) -> int:
    """Parse `2026-11-24T10:00:00Z`, or `2h` for two hours ago; returns milliseconds since 1970. Raises ValueError."""
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return round((time.time() - int(ago[1]) * _SECONDS[ago[2]]) * 1000)
    moment = read_time(text)
    if moment is None:
        raise ValueError(f"{text!r} is not a time; write 2026-11-24T10:00:00Z, or an age such as 30m, 2h or 3d")
    return moment


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units: `5 d 2 h`, `3 min 10 s`, `0 s`. Rounds down; negative ones become 0."""
    left = max(0, int(seconds))
    parts: list[tuple[int, str]] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count or len(parts) == 1)
