"""Decides whether a Misconfigured answer is about one hit or about the settings of the connection. Pure; does no I/O.

"Refused" means answered Misconfigured by the destination itself. A firewall answers 403 to a hit whose text it blocks. A wrong key
is answered 401 for every hit. One answer does not distinguish the two cases. So a hit that is refused alone is set aside, and the
connection pauses if a second hit is refused before the destination has accepted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from pipeline.destination import Delivered, Misconfigured, Outcome, Rejected, Skipped

MOST_AT_ONCE, PER_MINUTE = 100, 2.0
"""A token bucket per connection and process: this many hits are set aside at once, and this many more per minute. For their cost see
codec/set_aside.py. With an empty bucket, a hit that is refused alone is sent MOST_SENDS_ALONE times in a row, and then becomes a
dead letter."""
MOST_SENDS_ALONE = 5
"""A hit that is refused for its text is refused each time. If only one of several backends has a wrong key, a repeated request may
reach another one."""
MOST_IN_A_PAUSE = 1_000
"""Most hits that are set aside in one pause; after the first MOST_AT_ONCE, only PER_MINUTE. With a wrong key, all other hits stay
on their topic."""
MOST_AT_ONCE_IN_A_PAUSE = 8
"""Hits that a pause sets aside at once, if that empties the batch. Then the hits behind them are read and sent, and may be accepted.
More are set aside only after KEEP_ORDER_SECONDS, so that a short fault of the destination does not change the order."""
KEEP_ORDER_SECONDS = 60.0
_MOST_REPEATED_IN_A_ROW = MOST_AT_ONCE
"""After this many consecutive refusals of hits that an earlier pause refused, the settings may be wrong again."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """The hit was refused alone: it moves to the topic `set-aside`, and delivery continues behind it. For `said` see Rejected."""

    message: str
    said: str = ""

    @property
    def text(self) -> str:
        """The message and the text of the response."""
        return f"{self.message}: {self.said}" if self.said else self.message


FinalOutcome = Outcome | SetAside
"""The outcome of a hit that a deliverer returns."""
Settled = Delivered | Rejected | Skipped | SetAside
"""An outcome that can be committed."""


class RefusalState(Enum):
    """What the refusals since the last other answer indicate.

    CLEAR -> ONE (one hit, or one request, was refused) -> MANY (a second one was refused: the connection is misconfigured).
    Each state -> CLEAR when the destination accepts a hit, or rejects one for another reason.
    """

    CLEAR = auto()
    ONE = auto()
    MANY = auto()


class RefusalAction(Enum):
    """What to do after a refused request."""

    HALVE = auto()
    """Send it again in halves, since one of its hits may be the cause."""
    SETTLE_ALONE = auto()
    """Set its only hit aside, or make it a dead letter if the bucket is empty."""
    PAUSE = auto()


class Allowance:
    """A token bucket that limits how many hits are set aside."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = float(MOST_AT_ONCE)
        self._at = clock()

    def take(self) -> bool:
        """Take a token; return False if there is none."""
        now = self._clock()
        self._left = min(float(MOST_AT_ONCE), self._left + (now - self._at) * PER_MINUTE / 60)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Refusals:
    """The refusals of one connection, across batches. Positions count within one batch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.state = RefusalState.CLEAR
        self._allowance = Allowance(clock)
        self._batch: object = None
        self._suspects: frozenset[int] = frozenset()
        """The positions of the request whose refusal led to ONE."""
        self._set_aside_in_pause = self._repeated_in_a_row = 0

    def handle(self, batch: object, chunk: Sequence[int], refused_before: bool) -> RefusalAction:
        """Return what to do after a request of `chunk` was answered Misconfigured.

        `refused_before`: an earlier pause refused one of its hits, so this refusal indicates nothing new about the connection.
        """
        if self.state is RefusalState.MANY:
            return RefusalAction.PAUSE
        if refused_before and self._repeated_in_a_row < _MOST_REPEATED_IN_A_ROW:
            self._repeated_in_a_row += len(chunk) == 1
        else:
            if self.state is RefusalState.ONE and not self._is_part(batch, chunk):
                self.state = RefusalState.MANY
                self._set_aside_in_pause = 0
                return RefusalAction.PAUSE
            self.state = RefusalState.ONE
            self._batch, self._suspects = batch, frozenset(chunk)
        return RefusalAction.HALVE if len(chunk) > 1 else RefusalAction.SETTLE_ALONE

    def note_healthy(self) -> None:
        """Note that the destination accepted a hit, or rejected one for the hit's own fault: the settings are right."""
        self.state = RefusalState.CLEAR
        self._repeated_in_a_row = 0

    def outcome_alone(self, refusal: Misconfigured) -> SetAside | Rejected:
        """Return the outcome of a hit that was refused alone."""
        if self._allowance.take():
            return SetAside(refusal.message, refusal.said)
        message = f"{refusal.message}; not set aside, because too many hits were refused alone"
        return Rejected("misconfigured_alone", message, refusal.said)

    def allowed_in_pause(self, left: int, paused_seconds: float) -> int:
        """Return how many of the `left` hits of a batch may be set aside now. All of them were refused."""
        if paused_seconds >= KEEP_ORDER_SECONDS:
            return min(left, MOST_IN_A_PAUSE - self._set_aside_in_pause)
        return left if self._set_aside_in_pause + left <= MOST_AT_ONCE_IN_A_PAUSE else 0

    def outcome_in_pause(self, refusal: Misconfigured) -> SetAside | Rejected | None:
        """Return the outcome of a hit that is set aside during a pause; None if the connection has set enough aside.

        The first few of a pause always get an outcome, so that a sender who empties the token bucket cannot stop the connection.
        """
        outcome = self.outcome_alone(refusal)
        if isinstance(outcome, Rejected) and self._set_aside_in_pause >= MOST_AT_ONCE_IN_A_PAUSE:
            return None
        self._set_aside_in_pause += 1
        return outcome

    def _is_part(self, batch: object, chunk: Sequence[int]) -> bool:
        return batch is self._batch and self._suspects.issuperset(chunk)
