"""`events` of a connection: selects events by name."""

from __future__ import annotations

import re
from collections.abc import Sequence


class EventSelection:
    """Matches names against `patterns`, where `*` matches any characters. A leading `!` excludes, regardless of the order.

    If all patterns have `!`, every other event is selected.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
        self._wanted = _matcher(wanted or ["*"])
        self._unwanted = _matcher([pattern[1:] for pattern in patterns if pattern.startswith("!")])

    def selects(self, name: str) -> bool:
        """Return whether events of this name are selected; "" is an event without a name."""
        return self._wanted.fullmatch(name) is not None and self._unwanted.fullmatch(name) is None


def _matcher(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{_expression(pattern)})" for pattern in patterns) or r"(?!)", re.DOTALL)


def _expression(pattern: str) -> str:
    """Return the regular expression of `pattern`.

    Parts between two stars match at their first place without backtracking (`?>`). With backtracking, `*a*b*c*` would take hours
    for a name of some thousand characters.
    """
    start, *parts = map(re.escape, pattern.split("*"))
    if not parts:
        return start
    *between, end = parts
    return start + "".join(f"(?>.*?{part})" for part in between) + ".*" + end
