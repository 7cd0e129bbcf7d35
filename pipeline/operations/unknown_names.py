"""What to say of a name in a hit's `integrations` that no connection answers to (contract.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.codec.bounded_counts import OTHERS
from pipeline.codec.printable import escape_controls
from pipeline.config.problems import nearest
from pipeline.registry import declared_destinations


def unknown_name(name: str, connections: Iterable[str]) -> str:
    """One line, with the name that may have been meant; `connections` are those that there are."""
    if name == OTHERS:
        return "integrations: other names, each of them rare"
    name = escape_controls(name)  # the sender chose it, and it may command a terminal
    kinds = declared_destinations()
    aliases = {alias for kind in kinds.values() for alias in kind.aliases}
    if name in kinds or name in aliases:
        return f"integrations.{name}: no connection has this destination"
    return f"integrations.{name} names no connection or destination{nearest(name, {*connections, *kinds, *aliases})}"
