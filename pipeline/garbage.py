"""When Python looks for garbage in cycles."""

from __future__ import annotations

import gc


def collect_seldom() -> None:
    """For a role that is built: what is there now stays, and little of what a hit makes is in a cycle.

    To look less often saves a twentieth of the router's time, a tenth of the intake's and a quarter of a deliverer's (bench/README.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
