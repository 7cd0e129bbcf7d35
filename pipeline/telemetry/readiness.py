"""Decides whether this process can do its work now, for /readyz, with every reason why it cannot.

Roles only report conditions; `Readiness.verdict` turns them into the answer. See docs/reference/health.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

REFUSED_LINES = 20
"""Maximum number of problems of a refused file that are listed."""
_REASON_CHARACTERS = 500


class State(Enum):
    """State of a part of this process. If it `blocks`, /readyz answers 503."""

    STARTING = "starting", True
    STOPPING = "stopping", True
    AWAY = "away", True
    UNCHECKED = "unchecked", True
    FULL = "full", True
    JOINING = "joining", True
    REBUILDING = "rebuilding", True
    STALLED = "stalled", True
    REFUSED = "refused", True
    # The rest only informs the operator. A connection that waits for its destination must not block a rollout.
    SPILLING = "spilling", False
    IDLE = "idle", False
    SENDING = "sending", False
    FAILING = "failing", False
    MISCONFIGURED = "misconfigured", False

    def __init__(self, label: str, blocks: bool) -> None:
        self.label = label
        self.blocks = blocks


@dataclass(frozen=True, slots=True)
class Condition:
    """One line of /readyz: the part `name` is in `state` because of `reason`. `since` is a reading of time.monotonic()."""

    name: str
    state: State
    reason: str
    since: float | None = None

    def line(self, now: float) -> str:
        """Return `name: state: reason`, with the duration if it is known."""
        lasted = "" if self.since is None else f" (for {max(0.0, now - self.since):.0f} s)"
        return f"{self.name}: {self.state.label}: {' '.join(self.reason.split())[:_REASON_CHARACTERS]}{lasted}"


Source = Callable[[float], Iterable[Condition]]
"""Returns the conditions of one part at a reading of time.monotonic(). Called from any thread."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of /readyz."""

    ready: bool
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The body: `ready` or `not ready`, then a line per condition."""
        return "\n".join(["ready" if self.ready else "not ready", *self.lines]) + "\n"


class Readiness:
    """The conditions of this process. Any thread can call its methods; `now` is a reading of time.monotonic()."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._conditions: dict[tuple[str, State], Condition] = {}
        self._sources: list[Source] = []

    def begin(self, name: str, state: State, reason: str, now: float) -> None:
        """Put `name` into `state`. If it is in that state already, update `reason` and keep the start time."""
        with self._lock:
            before = self._conditions.get((name, state))
            since = now if before is None else before.since
            self._conditions[name, state] = Condition(name, state, reason, since)

    def end(self, name: str, state: State) -> None:
        """Remove `name` from `state`, if it is in it."""
        with self._lock:
            self._conditions.pop((name, state), None)

    def add(self, source: Source) -> None:
        """Add `source` to those that each verdict asks."""
        with self._lock:
            self._sources.append(source)

    def verdict(self, now: float) -> Verdict:
        """Return ready unless a condition blocks. Blocking conditions come first; both groups are sorted by name."""
        with self._lock:
            found = list(self._conditions.values())
            sources = list(self._sources)
        for source in sources:
            found += source(now)
        # The sort is stable: the problems of a file stay in the order of its lines.
        found.sort(key=lambda condition: (not condition.state.blocks, condition.name, condition.state.label))
        blocked = any(condition.state.blocks for condition in found)
        return Verdict(not blocked, tuple(condition.line(now) for condition in found))


def refused_file(problems: Callable[[], list[str] | None]) -> Source:
    """Return a source for the problems of a configuration file whose newest version is refused; `problems` returns them."""

    def conditions(_: float) -> Iterator[Condition]:
        refused = problems() or []
        for problem in refused[:REFUSED_LINES]:
            yield Condition("configuration", State.REFUSED, problem)
        if len(refused) > REFUSED_LINES:
            yield Condition("configuration", State.REFUSED, f"and {len(refused) - REFUSED_LINES} more problems")

    return conditions


def stopping(is_stopping: Callable[[], bool]) -> Source:
    """Return a source for the condition `stopping`, which holds once `is_stopping` returns true."""

    def conditions(_: float) -> Iterator[Condition]:
        if is_stopping():
            yield Condition("process", State.STOPPING, "it finishes work in progress, then ends")

    return conditions
