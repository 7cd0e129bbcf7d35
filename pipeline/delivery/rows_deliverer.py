"""Records of a deliveries topic as rows of a table that knows them by a key: PostgreSQL, BigQuery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from faust.types import TP

from pipeline.config.models import ConnectionConfig
from pipeline.delivery.deliverers import Received, ages_of, attempts_of, by_partition
from pipeline.delivery.lanes import Guard
from pipeline.delivery.refusals import FinalOutcome
from pipeline.destination import Rejected, Settings, Verdict
from pipeline.redaction import Redaction
from pipeline.sinks.table_row import Row, keyed_row_of


class RowSink(Protocol):
    """A table that notices by itself what it has already."""

    async def write(self, rows: Sequence[Row]) -> Verdict:
        """Store the rows; never raises for what the backend answers."""

    async def close(self) -> None:
        """Close the connection."""


class RowsDeliverer:
    """For tables with a key, which hold a hit once however often it is written."""

    def __init__(self, name: str, connection: ConnectionConfig, settings: Settings, sink: RowSink) -> None:
        self._sink = sink
        self._attempts = attempts_of(name, connection.delivery, Redaction.of(settings), self._sink.write)

    def forget(self) -> None:
        """Keeps nothing: the table's key knows what is there."""

    async def close(self) -> None:
        """Close the connection."""
        await self._sink.close()

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[FinalOutcome | None]]:
        """All rows at once; a row that can't be stored is named by the sink, or found by halving."""
        rows = [
            read if isinstance(read, Rejected) else keyed_row_of(read.hit)
            for part in received.values()
            for _, read in part
        ]
        storable = [position for position, row in enumerate(rows) if not isinstance(row, Rejected)]
        lanes = [[storable]] if storable else []
        return by_partition(await self._attempts.deliver(rows, lanes, guard, ages_of(received)), received)
