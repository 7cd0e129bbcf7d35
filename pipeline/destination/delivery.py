"""One hit for one connection, and the event that it becomes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from pipeline.destination.message import Message, read_message
from pipeline.destination.outcomes import Skipped
from pipeline.destination.routed_hit import RoutedHit

_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True)
class Delivery:
    """One hit for one connection. `value` is the whole routed hit as JSON; `settings` and `options` are validated."""

    hit: RoutedHit
    value: bytes
    settings: Any
    options: Any

    @cached_property
    def message(self) -> Message:
        """The content of the hit, in one form for all dialects. Destinations should read this, not `event`."""
        return read_message(_decode(self.hit.event), self.hit.context, self.hit.sentAt, self.hit.receivedAt)

    @property
    def event(self) -> dict[str, Any]:
        """The event as the client sent it."""
        return self.message.event

    @property
    def context(self) -> dict[str, Any]:
        """The context of the client with the derived members."""
        return self.message.context

    @property
    def name(self) -> str:
        """The name of the event; "" if it is not text."""
        return self.message.name

    @property
    def time(self) -> str:
        """Time of the event, ISO 8601 in UTC. A wrong client clock cannot make it later than `receivedAt`."""
        return self.message.time

    @property
    def time_ms(self) -> int:
        """`time` in Unix milliseconds."""
        return self.message.time_ms

    @property
    def properties(self) -> dict[str, Any]:
        """The properties of the event, without its name and user."""
        return self.message.properties

    def unsupported(self) -> Skipped | None:
        """Return the outcome of identify, group and alias calls for a destination that accepts only events; None for events."""
        kind = self.message.type
        return Skipped(f"no_{kind}_calls") if kind in ("identify", "group", "alias") else None


@dataclass(frozen=True, slots=True)
class Event:
    """The part of a request that one hit becomes. Only events with the same `group` share a request.

    The deliverer sets `time_ms`, if `Limits` has a maximum age.
    """

    hit_id: str
    body: bytes
    group: Hashable = None
    time_ms: int | None = None
