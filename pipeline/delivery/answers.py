"""What the answer of a destination means, and what it said, as part of the outcomes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.codec.printable import escape_controls, shorten
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
from pipeline.redaction import Redaction

logger = logging.getLogger("hitrouter.deliver")

SAID_CHARACTERS = 500
_READ_BYTES = 8_192
"""Of an answer; far more than is kept, so that a secret is found although the cut goes through it."""


def read_answer(destination: str, http: Http, answer: HttpResponse, events: Sequence[Event]) -> Verdict:
    """Return the destination's verdict; where its function fails, what the status alone says."""
    try:
        verdict = http.verdict(answer, events)
    except Exception as error:
        logger.exception("the verdict of %s failed", destination)
        # An unparseable 2xx may hide per-event errors; an unparseable refusal is still a refusal.
        by_status = judge(answer, events)
        return Retry(f"verdict_failed_{type(error).__name__}") if isinstance(by_status, Delivered) else by_status
    if isinstance(verdict, Sequence) and len(verdict) != len(events):
        return Retry(f"the verdict has {len(verdict)} outcomes for {len(events)} events")
    return verdict


def said_by(response: HttpResponse, redaction: Redaction) -> str:
    """Return the text of an answer: redacted, control characters escaped, at most SAID_CHARACTERS; "" for an empty one."""
    encoding = response.headers.get("content-encoding", "").lower()
    if response.body and encoding not in ("", "identity"):
        return (
            f"({len(response.body)} bytes, encoded as {escape_controls(encoding)[:20]} although identity was asked for)"
        )
    text = response.body[:_READ_BYTES].decode(errors="replace").strip()
    return shorten(escape_controls(redaction.text(text)), SAID_CHARACTERS)


def with_said(verdict: Verdict, said: Callable[[], str]) -> Verdict:
    """Return `verdict` with what the destination said, where it did not take the request.

    A verdict per event stays as it is: the answer is about other hits, too, and must not get into their dead letters.
    """
    if isinstance(verdict, Retry | Rejected | Misconfigured):
        return replace(verdict, said=said())
    return verdict


def redacted(verdict: Verdict, redaction: Redaction) -> Verdict:
    """Return `verdict` without the connection's secrets in its texts."""
    if isinstance(verdict, Sequence):
        return [_redacted(outcome, redaction) for outcome in verdict]
    return _redacted(verdict, redaction)


def _redacted(outcome: Outcome, redaction: Redaction) -> Outcome:
    if isinstance(outcome, Retry):
        return replace(outcome, reason=redaction.text(outcome.reason))
    if isinstance(outcome, Rejected | Misconfigured):
        return replace(outcome, message=redaction.text(outcome.message))
    return outcome
