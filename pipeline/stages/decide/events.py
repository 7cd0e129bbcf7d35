"""`events` of a connection: names of the events that it wants."""

from __future__ import annotations

import re
from collections.abc import Sequence


class EventSelection:
    """`patterns` are exact names, where `*` stands for any characters; a leading `!` leaves an event out, wherever it stands.

    With nothing but `!` patterns every other event is selected.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
        self._wanted = _matcher(wanted or ["*"])
        self._unwanted = _matcher([pattern[1:] for pattern in patterns if pattern.startswith("!")])

    def selects(self, name: str) -> bool:
        """Does the connection want events of this name? "" is an event without one."""
        return self._wanted.fullmatch(name) is not None and self._unwanted.fullmatch(name) is None


def _matcher(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{_expression(pattern)})" for pattern in patterns) or r"(?!)", re.DOTALL)


def _expression(pattern: str) -> str:
    """The first place of each part between two stars is as good as any, so it is never looked for again (`?>`).

    Otherwise a sender's name of some thousand characters keeps `*a*b*c*` busy for hours.
    """
    start, *parts = map(re.escape, pattern.split("*"))
    if not parts:
        return start
    *between, end = parts
    return start + "".join(f"(?>.*?{part})" for part in between) + ".*" + end
