"""Whether an answer of the kind Misconfigured is about one hit, or about the settings of the connection. Pure.

A receiver's firewall answers 403 to a hit whose text it dislikes; a wrong key is answered 401 for every hit. One answer does not say
which it is. So a single hit that is answered so stands alone and is set aside, and the connection pauses when another hit is
answered so before the destination has taken one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from pipeline.destination import Delivered, Misconfigured, Outcome, Rejected, Skipped

MOST_AT_ONCE, PER_MINUTE = 100, 2.0
"""How many hits a connection sets aside in one process: so many at once, and so many more a minute. See codec/set_aside.py for what
they cost. Beyond it a hit that stands alone is asked MOST_ASKED_ALONE times in a row, and is then a dead letter."""
MOST_ASKED_ALONE = 5
"""A hit that is refused for its text is refused each time. One that met a backend with a wrong key, beside others with the right
one, is taken."""
MOST_IN_A_PAUSE = 1_000
"""Hits that one pause sets aside at most, after the first MOST_AT_ONCE no more than PER_MINUTE: with a wrong key all others stay on their
topic."""
SOON_IN_A_PAUSE = 8
"""How many of them a pause sets aside at once, where that empties the batch. Then the hits behind them are read and asked, and may be
taken. More are set aside only after KEEP_PLACES_SECONDS, so that a short fault of the destination changes no order."""
KEEP_PLACES_SECONDS = 60.0
_MOST_IN_A_ROW = MOST_AT_ONCE
"""After so many refusals in a row of hits that a former pause refused, the settings may be wrong again."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """The hit was refused alone: it waits on the topic `set-aside`, and those behind it go on. `said` as in Rejected."""

    message: str
    said: str = ""

    @property
    def text(self) -> str:
        """Message and answer."""
        return f"{self.message}: {self.said}" if self.said else self.message


FinalOutcome = Outcome | SetAside
"""What a deliverer says of one hit."""
Settled = Delivered | Rejected | Skipped | SetAside
"""An outcome that lasts."""


class Standing(Enum):
    """What the refusals since the last answer of another kind say.

    CLEAR -> ONE (one hit, or one request, was refused) -> MANY (another one, too: the connection is misconfigured).
    Each state -> CLEAR when the destination takes a hit, or refuses it for another reason.
    """

    CLEAR = auto()
    ONE = auto()
    MANY = auto()


class Decision(Enum):
    """What a refused request means."""

    HALVE = auto()
    """One of its hits may be at fault: ask in halves."""
    STANDS_ALONE = auto()
    PAUSE = auto()


class Allowance:
    """A token bucket: may one more hit be set aside?"""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = float(MOST_AT_ONCE)
        self._at = clock()

    def take(self) -> bool:
        """Take one, if there is one."""
        now = self._clock()
        self._left = min(float(MOST_AT_ONCE), self._left + (now - self._at) * PER_MINUTE / 60)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Refusals:
    """The state of one connection; it outlives the batch. Positions count within one batch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.standing = Standing.CLEAR
        self._allowance = Allowance(clock)
        self._batch: object = None
        self._suspects: frozenset[int] = frozenset()
        """The positions of the request whose refusal led to ONE."""
        self._set_aside_in_pause = self._again_in_a_row = 0

    def refused(self, batch: object, chunk: Sequence[int], asked_before: bool) -> Decision:
        """A request of `chunk` was answered Misconfigured.

        `asked_before`: one of its hits was refused in a pause that has ended since, so its refusal is no news about the connection.
        """
        if self.standing is Standing.MANY:
            return Decision.PAUSE
        if asked_before and self._again_in_a_row < _MOST_IN_A_ROW:
            self._again_in_a_row += len(chunk) == 1
        else:
            if self.standing is Standing.ONE and not self._is_part(batch, chunk):
                self.standing = Standing.MANY
                self._set_aside_in_pause = 0
                return Decision.PAUSE
            self.standing = Standing.ONE
            self._batch, self._suspects = batch, frozenset(chunk)
        return Decision.HALVE if len(chunk) > 1 else Decision.STANDS_ALONE

    def answered(self) -> None:
        """The destination took a hit, or refused it for a reason of its own: the settings are right."""
        self.standing = Standing.CLEAR
        self._again_in_a_row = 0

    def outcome(self, refusal: Misconfigured) -> SetAside | Rejected:
        """Return the outcome of a hit that stands alone."""
        if self._allowance.take():
            return SetAside(refusal.message, refusal.said)
        message = f"{refusal.message}; too many hits are answered so alone to set this one aside"
        return Rejected("misconfigured_alone", message, refusal.said)

    def room_in_pause(self, left: int, paused_seconds: float) -> int:
        """How many of the `left` hits of a batch, which were all refused, may be set aside now."""
        if paused_seconds >= KEEP_PLACES_SECONDS:
            return min(left, MOST_IN_A_PAUSE - self._set_aside_in_pause)
        return left if self._set_aside_in_pause + left <= SOON_IN_A_PAUSE else 0

    def outcome_in_pause(self, refusal: Misconfigured) -> SetAside | Rejected | None:
        """Return the outcome of a hit that a pause sets aside; None when the connection has set enough aside.

        The first of a pause have one always, so that nobody who uses the allowance up stops the connection.
        """
        outcome = self.outcome(refusal)
        if isinstance(outcome, Rejected) and self._set_aside_in_pause >= SOON_IN_A_PAUSE:
            return None
        self._set_aside_in_pause += 1
        return outcome

    def _is_part(self, batch: object, chunk: Sequence[int]) -> bool:
        return batch is self._batch and self._suspects.issuperset(chunk)
