"""Points in time as operators type them."""

from __future__ import annotations

import re
import time

from pipeline.codec.routed_hit import read_time

_AGO = re.compile(r"(\d+)\s*([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def read_moment(text: str) -> int:
    """`2026-11-24T10:00:00Z`, or `2h` for two hours ago, as milliseconds since 1970. Raises ValueError."""
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return round((time.time() - int(ago[1]) * _SECONDS[ago[2]]) * 1000)
    moment = read_time(text)
    if moment is None:
        raise ValueError(f"{text!r} is no time; write 2026-11-24T10:00:00Z, or 30m, 2h, 3d for so long ago")
    return moment
