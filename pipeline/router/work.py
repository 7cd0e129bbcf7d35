"""The outputs of the transaction of one batch."""

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
    """The outputs of one transaction.

    `routed` maps each topic to (value, key) pairs, all with `headers`; `others` holds all other outputs except dead letters.
    They are grouped by topic, because queuing consecutive records of one topic costs librdkafka a tenth less.
    """

    claim: Claim
    headers: Headers
    routed: dict[str, list[tuple[bytes, bytes]]]
    others: list[Output]
    dead_letters: list[Output]
    conflicting: Counter[str]
    """Number of duplicates with different content, by project."""

    def write(self, outputs: Outputs) -> None:
        """Queue all outputs in the open transaction; its end commits or discards the claim."""
        outputs.after_commit(self._committed)
        outputs.after_abort(self.claim.discard)
        # These may be too large, so they come first: aborting a transaction with few queued records is quick.
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
