"""The outcomes of a hit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delivered:
    """The destination has accepted the hit."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A temporary failure, such as a network error, 408, 425, 429 or 5xx: the hit is sent again.

    `after_seconds` is the pause that the destination asked for. If it is 0 and other events of the request have final outcomes, the
    event is sent again at once. For `said` see Rejected.
    """

    reason: str
    after_seconds: float | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A final failure: the hit becomes a dead letter.

    `said` is the text of the response, redacted and cut; the deliverer sets it. It may contain personal data of the hit, so it is
    written to dead letters and the ledger, but never to a log.
    """

    reason: str
    message: str
    said: str = ""

    @property
    def text(self) -> str:
        """The message and the text of the response, for the dead letter."""
        return f"{self.message}: {self.said}" if self.said else self.message


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """The operator must act, for example after 401, 403 or 410: the connection pauses. For `said` see Rejected.

    `is_answer`: the destination itself answered so, perhaps because of the content of the hit. False means that it has not seen the
    hit, for example because a proxy refused the connection.
    """

    message: str
    said: str = ""
    is_answer: bool = True


@dataclass(frozen=True, slots=True)
class Skipped:
    """The destination does not need the hit; it is not sent."""

    reason: str


Outcome = Delivered | Retry | Rejected | Misconfigured | Skipped

Verdict = Outcome | Sequence[Outcome]
"""One outcome for the whole request, or one per event in order."""
