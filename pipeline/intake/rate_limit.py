"""Limits the hits and bytes that a project sends through secret or through public doors: two token buckets."""

from __future__ import annotations

import math
from collections.abc import Callable

from pipeline.config.models import RateLimitConfig

BURST_SECONDS = 10.0
"""Default burst: what the rate allows in this time."""


class RateLimit:
    """The limit of one intake process, an equal part for each of `workers`.

    A request passes while at least one hit and one byte are left. It may take more than is left; later requests are refused
    until the bucket has refilled. So a batch larger than the burst can pass, too.
    """

    __slots__ = ("_at", "_bytes", "_bytes_burst", "_bytes_rate", "_hits", "_hits_burst", "_hits_rate", "configured")

    def __init__(self, configured: RateLimitConfig, workers: int, now: float) -> None:
        self.configured = configured
        self._hits_rate, self._hits_burst = _part(configured.hits_per_second, configured.hits_burst, workers)
        self._bytes_rate, self._bytes_burst = _part(configured.bytes_per_second, configured.bytes_burst, workers)
        self._hits, self._bytes, self._at = self._hits_burst, self._bytes_burst, now

    def refill(self, now: float) -> None:
        """Refill for the time since the last call; called about twice a second, and when a bucket is empty."""
        seconds, self._at = now - self._at, now
        self._hits = min(self._hits_burst, self._hits + seconds * self._hits_rate)
        self._bytes = min(self._bytes_burst, self._bytes + seconds * self._bytes_rate)

    def exceeded(self, clock: Callable[[], float]) -> tuple[str, float] | None:
        """Return what is exceeded, "hits" or "bytes", and the seconds until it refills; None if a request may pass."""
        if self._hits >= 1.0 and self._bytes >= 1.0:
            return None
        self.refill(clock())
        if self._hits < 1.0:
            return "hits", (1.0 - self._hits) / self._hits_rate
        if self._bytes < 1.0:
            return "bytes", (1.0 - self._bytes) / self._bytes_rate
        return None

    def take(self, hits: int, size_bytes: int) -> None:
        """Take the hits and bytes of an accepted request."""
        self._hits -= hits
        self._bytes -= size_bytes


def rate_limit(configured: RateLimitConfig, workers: int, now: float, before: RateLimit | None) -> RateLimit | None:
    """Return the limit of one of `workers` processes: `before` if its configuration is unchanged; None for no limit."""
    if configured.hits_per_second is None and configured.bytes_per_second is None:
        return None
    if before is not None and before.configured == configured:
        return before
    return RateLimit(configured, workers, now)


def _part(per_second: float | None, burst: int | None, workers: int) -> tuple[float, float]:
    """Return rate and burst of one worker; without a configured rate the burst is infinite."""
    if per_second is None:
        return 0.0, math.inf
    return per_second / workers, max(1.0, (burst or per_second * BURST_SECONDS) / workers)
