"""Rejects events that have become too old for their destination while they waited (`Limits.oldest_seconds`)."""

from __future__ import annotations

from pipeline.destination import Event, Limits, Rejected, Skipped


def too_old(event: Event | Skipped | Rejected, limits: Limits, now_seconds: float) -> Rejected | None:
    """Return the rejection of an event that is too old at `now_seconds` (Unix time); None for others and for outcomes."""
    if limits.oldest_seconds is None or not isinstance(event, Event) or event.time_ms is None:
        return None
    age_seconds = now_seconds - event.time_ms / 1000
    if age_seconds <= limits.oldest_seconds:
        return None
    return Rejected(
        "too_old",
        f"{age_seconds / 3600:.1f} hours old; the destination accepts {limits.oldest_seconds / 3600:g} hours",
    )
