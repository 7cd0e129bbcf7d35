"""Reduces the work of Python's cyclic garbage collector in long-running roles."""

from __future__ import annotations

import gc


def freeze_startup_objects() -> None:
    """Exclude all existing objects, including all modules, from garbage collection. Call once a role is built.

    Collecting them took a quarter of the time of a delivered request.
    """
    gc.collect()
    gc.freeze()


def reduce_gc_frequency() -> None:
    """Freeze startup objects and collect garbage less often. Only for roles whose hits are in no reference cycle.

    This saves a twentieth of the router's time and a tenth of the intake's. Not for a deliverer: a failed request leaves a
    cycle that holds its body.
    """
    freeze_startup_objects()
    gc.set_threshold(50_000, 20, 50)
