"""While a connection waits: until when, why, and for how long already (contract.md, section 6)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from pipeline.destination import Misconfigured, Rejected, Retry
from pipeline.telemetry.waiting import WAITING, Waiting

logger = logging.getLogger("hitrouter.deliver")

FIRST_BACKOFF_SECONDS = 1.0
LAST_BACKOFF_SECONDS = 300.0
DOWN_AFTER = 3
"""Failures in a row after which the destination counts as down; fewer are the bad luck of single requests."""
_PROBES_AT_ONCE, _QUICK_PROBES = 3, 100
"""While a misconfigured connection has hits that were not asked: so many of them are asked without a wait, so many within a second
each. Some hits may be refused for their text, and then the next one is taken."""
_OTHERS_SECONDS = 30.0
"""The longest wait between later ones."""
_LONGEST_ASKED_SECONDS = 3600.0
"""A `Retry-After` beyond it is rather a mistake; a probe an hour hurts nobody."""


def backoff_seconds(attempt: int, asked: float | None, draw: float, longest: float = LAST_BACKOFF_SECONDS) -> float:
    """Full jitter: `draw` (0..1) of 1 s doubled per attempt, at most `longest`; never sooner than the destination asked.

    What it asks counts up to an hour. Full jitter: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    jittered = draw * min(longest, FIRST_BACKOFF_SECONDS * 2.0 ** min(attempt, 16))
    return max(jittered, min(_LONGEST_ASKED_SECONDS, asked or 0.0))


class Backoff:
    """The state of one connection; it outlives the batch. Others in this process see it in `WAITING`.

    A request takes `round` with it: what it answers after the connection has begun to wait says nothing about the next probe.
    """

    def __init__(
        self,
        connection: str,
        give_up_after_seconds: float,
        clock: Callable[[], float],
        draw: Callable[[], float],
        longest_seconds: float = LAST_BACKOFF_SECONDS,
        give_up_misconfigured_after_seconds: float | None = None,
    ) -> None:
        self.waits = False
        """Is the destination down, or asks for a pause? Then one probe at a time goes, each when its time has come."""
        self.probe_at = 0.0
        """On `clock`: not before may the next request go, while it waits."""
        self.round = 0
        self._connection = connection
        self._clock = clock
        self._draw = draw
        self._longest_seconds = longest_seconds
        self._attempt = self._in_a_row = self._probes = 0
        self._is_told = False
        self._last: Retry | Misconfigured | None = None
        self._failing_since = 0.0
        """Since when nothing succeeds and failures are of the kind of the last; no hit dies of other kinds."""
        self._give_up_after_seconds = give_up_after_seconds
        self._give_up_misconfigured_after_seconds = give_up_misconfigured_after_seconds

    def failed(self, failure: Retry | Misconfigured, round_: int, asks_others: bool = False) -> None:
        """Another failure: at the third in a row, or where the destination wants a pause, the next probe has its time.

        With `asks_others` a probe of a misconfigured connection asks another hit than those that were refused.
        """
        now = self._clock()
        asked = failure.after_seconds if isinstance(failure, Retry) else None
        if self.waits and round_ != self.round:
            self.probe_at = max(self.probe_at, now + min(_LONGEST_ASKED_SECONDS, asked or 0.0))
            return
        if type(failure) is not type(self._last):
            self._attempt = self._in_a_row = self._probes = 0
            self._failing_since = now
        self._last = failure
        self._in_a_row += 1
        if isinstance(failure, Retry) and not asked and self._in_a_row < DOWN_AFTER:
            return
        is_quick = isinstance(failure, Misconfigured) and asks_others and self._probes < _QUICK_PROBES
        if is_quick:
            seconds = 0.0 if self._probes < _PROBES_AT_ONCE else self._draw() * FIRST_BACKOFF_SECONDS
            self._probes += 1
        else:
            longest = min(_OTHERS_SECONDS, self._longest_seconds) if asks_others else self._longest_seconds
            seconds = backoff_seconds(self._attempt, asked, self._draw(), longest)
            self._attempt += 1
        self.waits = True
        self.probe_at = now + seconds
        self.round += 1
        if not seconds and self._probes <= _PROBES_AT_ONCE and asks_others:
            return  # not worth a line in the log, which a sender of such hits could fill
        why = _why(failure)
        WAITING.begin(self._connection, Waiting(isinstance(failure, Misconfigured), why, seconds, said=failure.said))
        if not is_quick or not self._is_told:  # a hundred quick probes would say the same
            state = "misconfigured" if isinstance(failure, Misconfigured) else "failing"
            line = "connection paused: connection=%s state=%s retry_in_seconds=%.1f reason=%s"
            logger.warning(line, self._connection, state, seconds, why)
        self._is_told = True

    def succeeded(self, round_: int) -> None:
        """The destination answers: everything may go again."""
        if self.waits:
            # Where the settings are wrong no request succeeds, whenever it was sent.
            if round_ != self.round and not self.misconfigured:
                return
            if self._is_told:
                logger.info("connection resumed: connection=%s", self._connection)
        WAITING.end(self._connection)  # also what it said before its configuration changed
        self.waits = self._is_told = False
        self._attempt = self._in_a_row = self._probes = 0
        self._last = None

    def probe_soon(self) -> None:
        """Other hits are next: the last probe says nothing about them."""
        seconds = 0.0 if self._probes < _PROBES_AT_ONCE else self._draw() * FIRST_BACKOFF_SECONDS
        self._probes += 1
        self.probe_at = min(self.probe_at, self._clock() + seconds)

    def pause_seconds(self, failures: int) -> float:
        """How long a lane waits by itself after so many failures of its own in a row, while the others go on."""
        return backoff_seconds(failures - 1, None, self._draw(), self._longest_seconds)

    @property
    def misconfigured(self) -> bool:
        """Is that the kind of the last failure?"""
        return isinstance(self._last, Misconfigured)

    @property
    def misconfigured_seconds(self) -> float:
        """For how long all failures are of that kind."""
        return self._clock() - self._failing_since if self.misconfigured else 0.0

    @property
    def is_refused(self) -> bool:
        """Did the destination itself say so?"""
        return isinstance(self._last, Misconfigured) and self._last.is_answer

    @property
    def refusal(self) -> Misconfigured:
        """The last failure, while the connection is misconfigured."""
        assert isinstance(self._last, Misconfigured)
        return self._last

    @property
    def give_up_after_seconds(self) -> float:
        """How long hits wait while failures are of the kind of the last."""
        if self.misconfigured:
            limit = self._give_up_misconfigured_after_seconds
            return math.inf if limit is None else limit
        return self._give_up_after_seconds

    def gave_up(self) -> Rejected | None:
        """The outcome of hits that have waited long enough, once the connection has failed as long."""
        if self._last is None or self._clock() - self._failing_since < self.give_up_after_seconds:
            return None
        setting = "give_up_after" if isinstance(self._last, Retry) else "give_up_misconfigured_after"
        message = f"no success within {setting}; the last failure: {_why(self._last)}"
        return Rejected("gave_up", message, self._last.said)


def _why(failure: Retry | Misconfigured) -> str:
    return failure.reason if isinstance(failure, Retry) else failure.message
