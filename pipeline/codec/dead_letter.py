"""Dead letters: the original bytes, with headers that state the reason (contract.md, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.codec.printable import escape_controls, shorten, shorten_bytes
from pipeline.codec.raw_record import DOOR, PUBLIC, Headers

_MESSAGE_LIMIT = 500
"""Most characters of a message or path in a dead letter."""
_NAME_BYTES = 256
"""Most bytes of a name or code. Headers of a record of hits-raw may hold names of any length."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why one record became a dead letter. `stage` is route or deliver, `reason` a code of a typed list, `path` within the hit.

    `is_public`: the record came in by a public door; False for routed hits, whose member `door` holds it.
    `message` may hold text of a destination or sender, so `headers` escapes control characters and bounds its length.
    """

    stage: str
    reason: str
    message: str
    topic: str
    partition: int
    offset: int
    at_ms: int
    connection: str = ""
    project: str = ""
    path: str = ""
    is_public: bool = False

    def headers(self) -> Headers:
        """Return the Kafka headers, in UTF-8."""
        fields = {
            "stage": self.stage,
            "reason": shorten_bytes(self.reason, _NAME_BYTES),
            "message": shorten(escape_controls(self.message), _MESSAGE_LIMIT),
            "path": shorten(self.path, _MESSAGE_LIMIT),
            "connection": shorten_bytes(self.connection, _NAME_BYTES),
            "project": shorten_bytes(self.project, _NAME_BYTES),
            "origin-topic": self.topic,
            "origin-partition": str(self.partition),
            "origin-offset": str(self.offset),
            "time": str(self.at_ms),
        }
        headers: Headers = [(name, value.encode(errors="replace")) for name, value in fields.items()]
        return [*headers, (DOOR, PUBLIC)] if self.is_public else headers
