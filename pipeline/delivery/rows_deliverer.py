"""Delivers the records of a deliveries topic as rows to a table with a key: PostgreSQL, BigQuery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from faust.types import TP

from pipeline.config.models import ConnectionConfig
from pipeline.delivery.deliverers import Received, build_attempts, record_ages, split_by_partition
from pipeline.delivery.lanes import Guard
from pipeline.delivery.redaction import Redaction
from pipeline.delivery.refusals import FinalOutcome
from pipeline.destination import Rejected, Settings, Verdict
from pipeline.sinks.table_row import Row, keyed_row_of


class RowSink(Protocol):
    """A table that ignores rows it already has."""

    async def write(self, rows: Sequence[Row]) -> Verdict:
        """Store the rows. Returns an outcome for every response of the backend; does not raise for it."""

    async def close(self) -> None:
        """Close the connection."""


class RowsDeliverer:
    """The deliverer of tables with a key: a hit that is written repeatedly is stored once."""

    def __init__(self, name: str, connection: ConnectionConfig, settings: Settings, sink: RowSink) -> None:
        self._sink = sink
        self._attempts = build_attempts(name, connection.delivery, Redaction.of(settings), self._sink.write)

    def reset(self) -> None:
        """Do nothing: the key of the table detects repeats, so this class keeps no state."""

    async def close(self) -> None:
        """Close the connection."""
        await self._sink.close()

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[FinalOutcome | None]]:
        """Send all rows at once. The sink names a row that cannot be stored, or halving finds it."""
        rows = [
            read if isinstance(read, Rejected) else keyed_row_of(read.hit)
            for part in received.values()
            for _, read in part
        ]
        storable = [position for position, row in enumerate(rows) if not isinstance(row, Rejected)]
        lanes = [[storable]] if storable else []
        return split_by_partition(await self._attempts.deliver(rows, lanes, guard, record_ages(received)), received)
