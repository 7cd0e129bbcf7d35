"""What the transaction of one batch writes."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from pipeline.codec.raw_record import Headers
from pipeline.kafka.dead_letter_record import produce_dead_letter
from pipeline.kafka.transport.batch import Outputs
from pipeline.stages.deduplicate import Claim
from pipeline.telemetry import HITS_CONFLICTING


class Output(NamedTuple):
    """One record to produce."""

    topic: str
    value: bytes | None
    key: bytes | None
    partition: int = -1
    headers: Headers | None = None
    timestamp_ms: int = 0


class Work(NamedTuple):
    """What one transaction writes. `routed` holds values and keys by topic, all with `headers`; `others` is all the rest,
    but for the dead letters.

    Topic by topic, because librdkafka queues a run of records for one topic a tenth cheaper than records that alternate.
    """

    claim: Claim
    headers: Headers
    routed: dict[str, list[tuple[bytes, bytes]]]
    others: list[Output]
    dead_letters: list[Output]
    conflicting: Counter[str]
    """Duplicates with other content than the first, by project."""

    def write(self, outputs: Outputs) -> None:
        """Hand all of it to the open transaction, and tie the claim to its end."""
        outputs.after_commit(self._committed)
        outputs.after_abort(self.claim.discard)
        # What may be too large comes first: to abort a transaction with few queued records is quick.
        for output in self.others:
            outputs.produce(*output)
        for topic, records in self.routed.items():
            outputs.produce_all(topic, records, self.headers)
        for topic, value, key, _, headers, _ in self.dead_letters:
            produce_dead_letter(outputs, topic, value, key, headers or [])

    def _committed(self) -> None:
        self.claim.commit()
        for project, count in self.conflicting.items():
            HITS_CONFLICTING.labels(project).inc(count)
