"""Tracks why and since when a connection is paused, and when the next probe is due (contract.md, section 6)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from pipeline.destination import Misconfigured, Rejected, Retry
from pipeline.telemetry.waiting import WAITING, Waiting

logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 300.0
DOWN_AFTER = 3
"""Consecutive failures after which the destination counts as down; fewer may concern single requests."""
_PROBES_AT_ONCE, _QUICK_PROBES = 3, 100
"""A misconfigured connection with hits that were not refused yet sends its first 3 probes at once, and up to 100 within a second
each. A hit may be refused only for its text, and then the next hit is accepted."""
_LATER_PROBE_SECONDS = 30.0
"""The longest wait before each later probe with a hit that was not refused yet."""
_LONGEST_RETRY_AFTER_SECONDS = 3600.0
"""A longer `Retry-After` is probably a mistake, and one probe per hour is harmless."""


def backoff_seconds(
    attempt: int, retry_after: float | None, draw: float, longest: float = LONGEST_BACKOFF_SECONDS
) -> float:
    """Return the exponential backoff with full jitter: `draw` (0 to 1) of 1 s, doubled per attempt, at most `longest`.

    It is never shorter than `retry_after`, which counts up to an hour. Source: Marc Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015.
    """
    jittered = draw * min(longest, FIRST_BACKOFF_SECONDS * 2.0 ** min(attempt, 16))
    return max(jittered, min(_LONGEST_RETRY_AFTER_SECONDS, retry_after or 0.0))


class Backoff:
    """The backoff state of one connection, across batches. The rest of the process reads it from `WAITING`.

    Each request is sent with the current `round`. A response to an earlier round, sent before the pause began, does not count as the
    result of a probe.
    """

    def __init__(
        self,
        connection: str,
        give_up_after_seconds: float,
        clock: Callable[[], float],
        draw: Callable[[], float],
        longest_seconds: float = LONGEST_BACKOFF_SECONDS,
        give_up_misconfigured_after_seconds: float | None = None,
    ) -> None:
        self.is_paused = False
        """True while the destination fails, refuses or asked for a pause. Then only single probes are sent."""
        self.probe_at = 0.0
        """While paused, the time on `clock` before which no request is sent."""
        self.round = 0
        self._connection = connection
        self._clock = clock
        self._draw = draw
        self._longest_seconds = longest_seconds
        self._attempt = self._failures_in_a_row = self._probes = 0
        self._is_logged = False
        self._last: Retry | Misconfigured | None = None
        self._failing_since = 0.0
        """Start of the current run of failures of one kind. Failures of another kind do not count towards its give-up time."""
        self._give_up_after_seconds = give_up_after_seconds
        self._give_up_misconfigured_after_seconds = give_up_misconfigured_after_seconds

    def failed(self, failure: Retry | Misconfigured, round_: int, has_other_hits: bool = False) -> None:
        """Count a failure; pause at the third consecutive one, when misconfigured, or if the destination asks for a pause.

        `has_other_hits`: the next probe of a misconfigured connection can send a hit that was not refused yet.
        """
        now = self._clock()
        retry_after = failure.after_seconds if isinstance(failure, Retry) else None
        if self.is_paused and round_ != self.round:
            self.probe_at = max(self.probe_at, now + min(_LONGEST_RETRY_AFTER_SECONDS, retry_after or 0.0))
            return
        if type(failure) is not type(self._last):
            self._attempt = self._failures_in_a_row = self._probes = 0
            self._failing_since = now
        self._last = failure
        self._failures_in_a_row += 1
        if isinstance(failure, Retry) and not retry_after and self._failures_in_a_row < DOWN_AFTER:
            return
        is_quick = isinstance(failure, Misconfigured) and has_other_hits and self._probes < _QUICK_PROBES
        if is_quick:
            seconds = 0.0 if self._probes < _PROBES_AT_ONCE else self._draw() * FIRST_BACKOFF_SECONDS
            self._probes += 1
        else:
            longest = min(_LATER_PROBE_SECONDS, self._longest_seconds) if has_other_hits else self._longest_seconds
            seconds = backoff_seconds(self._attempt, retry_after, self._draw(), longest)
            self._attempt += 1
        self.is_paused = True
        self.probe_at = now + seconds
        self.round += 1
        if not seconds and self._probes <= _PROBES_AT_ONCE and has_other_hits:
            return  # not logged: a sender of hits that are refused could fill the log
        reason = _reason_of(failure)
        WAITING.begin(self._connection, Waiting(isinstance(failure, Misconfigured), reason, seconds, said=failure.said))
        if not is_quick or not self._is_logged:  # one line for up to a hundred quick probes
            state = "misconfigured" if isinstance(failure, Misconfigured) else "failing"
            logger.warning(
                "connection paused: connection=%s state=%s retry_in_seconds=%.1f reason=%s",
                *(self._connection, state, seconds, reason),
            )
        self._is_logged = True

    def succeeded(self, round_: int) -> None:
        """End the pause, because a request of `round_` succeeded."""
        if self.is_paused:
            # With wrong settings no request succeeds, so the success of an earlier round ends that pause, too.
            if round_ != self.round and not self.is_misconfigured:
                return
            if self._is_logged:
                logger.info("connection resumed: connection=%s", self._connection)
        WAITING.end(self._connection)  # also a pause from before a change of the configuration
        self.is_paused = self._is_logged = False
        self._attempt = self._failures_in_a_row = self._probes = 0
        self._last = None

    def probe_soon(self) -> None:
        """Bring the next probe forward, because it sends other hits than the last one."""
        seconds = 0.0 if self._probes < _PROBES_AT_ONCE else self._draw() * FIRST_BACKOFF_SECONDS
        self._probes += 1
        self.probe_at = min(self.probe_at, self._clock() + seconds)

    def lane_pause_seconds(self, failures: int) -> float:
        """Return how long one lane pauses after `failures` consecutive failures, while the other lanes continue."""
        return backoff_seconds(failures - 1, None, self._draw(), self._longest_seconds)

    @property
    def is_misconfigured(self) -> bool:
        """True if the last failure was Misconfigured."""
        return isinstance(self._last, Misconfigured)

    @property
    def misconfigured_seconds(self) -> float:
        """How long all failures have been Misconfigured; 0 if the last one was not."""
        return self._clock() - self._failing_since if self.is_misconfigured else 0.0

    @property
    def is_refused(self) -> bool:
        """True if the last failure is a Misconfigured answer of the destination itself."""
        return isinstance(self._last, Misconfigured) and self._last.is_answer

    @property
    def refusal(self) -> Misconfigured:
        """The last failure. Only valid while the connection is misconfigured."""
        assert isinstance(self._last, Misconfigured)
        return self._last

    @property
    def give_up_after_seconds(self) -> float:
        """How long hits wait before they are given up, for failures of the last kind."""
        if self.is_misconfigured:
            limit = self._give_up_misconfigured_after_seconds
            return math.inf if limit is None else limit
        return self._give_up_after_seconds

    def give_up_outcome(self) -> Rejected | None:
        """Return the outcome of overdue hits; None until the connection itself has failed for that long."""
        if self._last is None or self._clock() - self._failing_since < self.give_up_after_seconds:
            return None
        setting = "give_up_after" if isinstance(self._last, Retry) else "give_up_misconfigured_after"
        message = f"no success within {setting}; the last failure: {_reason_of(self._last)}"
        return Rejected("gave_up", message, self._last.said)


def _reason_of(failure: Retry | Misconfigured) -> str:
    return failure.reason if isinstance(failure, Retry) else failure.message
