"""The result of routing one record, as a value; `tally.py` counts it, and `prepare.py` turns it into outputs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipeline.router.routing import DecidedHit
from pipeline.stages.classify import Dead, RawHit, Rekey

ROUTE_FAILED = "route_failed"
"""Dead-letter reason of a hit for which our code raises an unexpected error (a bug). A retry would fail again."""
INVALID_OPTIONS = "invalid_options"
"""Dead-letter reason of a hit for one connection."""
PLAN_VIOLATION = "plan_violation"


class Routed(msgspec.Struct, gc=False):
    """A new hit. `values` holds the connections that get it, grouped by the value they get."""

    raw: RawHit
    hit: DecidedHit
    values: list[tuple[Sequence[str], bytes]]


class Replayed(msgspec.Struct, gc=False):
    """A hit that an operator sends again, to the connection `raw.replay_to`."""

    raw: RawHit
    value: bytes


class ReplaySkipped(msgspec.Struct, gc=False):
    """A replayed hit that its connection does not get. `dead` is set if it becomes a dead letter again."""

    project: str
    connection: str
    reason: str
    dead: Dead | None = None


class Duplicate(msgspec.Struct, gc=False):
    """A hit whose id was accepted before. `is_conflicting`: its content differs from the first one."""

    project: str
    is_conflicting: bool


class Rekeyed(msgspec.Struct, gc=False):
    """A record with another key or partition than its id has; it is written back."""

    rekey: Rekey


class DeadLettered(msgspec.Struct, gc=False):
    """A record that is no hit, or that failed."""

    dead: Dead


OtherResult = Replayed | ReplaySkipped | Duplicate | Rekeyed | DeadLettered
"""All results but Routed, which nearly all records have."""
Result = Routed | OtherResult
