"""Describes names in a hit's `integrations` that match no connection (contract.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.codec.bounded_counts import OTHERS
from pipeline.codec.printable import escape_controls
from pipeline.config.problems import nearest
from pipeline.registry import declared_destinations


def unknown_name(name: str, connections: Iterable[str]) -> str:
    """Return one line about `name`, with the most similar known name. `connections` are those of the file."""
    if name == OTHERS:
        return "integrations: other rare names"
    name = escape_controls(name)  # the sender chose it, and it may hold terminal control sequences
    kinds = declared_destinations()
    aliases = {alias for kind in kinds.values() for alias in kind.aliases}
    if name in kinds or name in aliases:
        return f"integrations.{name}: no connection has this destination"
    return f"integrations.{name} is not a connection or destination{nearest(name, {*connections, *kinds, *aliases})}"
