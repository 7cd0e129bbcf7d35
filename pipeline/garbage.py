"""When Python looks for garbage in cycles."""

from __future__ import annotations

import gc


def spare_what_is_there() -> None:
    """For a role that is built: collections leave out what is there now, all modules among it.

    That was a quarter of what a delivered request costs.
    """
    gc.collect()
    gc.freeze()


def collect_seldom() -> None:
    """For a role whose hits are in no cycle: to look less often saves a twentieth of the router's time, a tenth of the intake's.

    Not for a deliverer: a request that fails leaves a cycle with its body in it.
    """
    spare_what_is_there()
    gc.set_threshold(50_000, 20, 50)
