"""Turns the response of a destination into outcomes, with the redacted text of the response."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.codec.printable import escape_controls, shorten
from pipeline.delivery.redaction import Redaction
from pipeline.destination import (
    Delivered,
    Event,
    Http,
    HttpResponse,
    Misconfigured,
    Outcome,
    Rejected,
    Retry,
    Verdict,
    judge,
)

logger = logging.getLogger(__name__)

RESPONSE_TEXT_CHARACTERS = 500
_READ_BYTES = 8_192
"""Bytes of a body that are redacted: far more than are kept, so that a secret across the cut is still found."""


def read_verdict(destination: str, http: Http, response: HttpResponse, events: Sequence[Event]) -> Verdict:
    """Return the destination's verdict on `response`; if its function raises, the verdict by the status alone."""
    try:
        verdict = http.verdict(response, events)
    except Exception as error:
        logger.exception("verdict failed: destination=%s", destination)
        # An unparseable 2xx may hide per-event errors; an unparseable refusal is still a refusal.
        by_status = judge(response, events)
        return Retry(f"verdict_failed_{type(error).__name__}") if isinstance(by_status, Delivered) else by_status
    if isinstance(verdict, Sequence) and len(verdict) != len(events):
        return Retry(f"the verdict has {len(verdict)} outcomes for {len(events)} events")
    return verdict


def response_text(response: HttpResponse, redaction: Redaction) -> str:
    """Return the body as redacted text of at most RESPONSE_TEXT_CHARACTERS, with control characters escaped; "" if empty."""
    encoding = response.headers.get("content-encoding", "").lower()
    if response.body and encoding not in ("", "identity"):
        return (
            f"({len(response.body)} bytes, encoded as {escape_controls(encoding)[:20]} although identity was requested)"
        )
    text = response.body[:_READ_BYTES].decode(errors="replace").strip()
    return shorten(escape_controls(redaction.text(text)), RESPONSE_TEXT_CHARACTERS)


def with_response_text(verdict: Verdict, text: Callable[[], str]) -> Verdict:
    """Return `verdict` with the text of the response, unless the destination accepted the request.

    A verdict per event stays unchanged: the response is about all hits of the request, and its text must not reach the dead
    letters of other hits.
    """
    if isinstance(verdict, Retry | Rejected | Misconfigured):
        return replace(verdict, said=text())
    return verdict


def redacted(verdict: Verdict, redaction: Redaction) -> Verdict:
    """Return `verdict` with the connection's secrets removed from its texts."""
    if isinstance(verdict, Sequence):
        return [_redacted(outcome, redaction) for outcome in verdict]
    return _redacted(verdict, redaction)


def _redacted(outcome: Outcome, redaction: Redaction) -> Outcome:
    if isinstance(outcome, Retry):
        return replace(outcome, reason=redaction.text(outcome.reason))
    if isinstance(outcome, Rejected | Misconfigured):
        return replace(outcome, message=redaction.text(outcome.message))
    return outcome
