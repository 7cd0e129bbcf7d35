"""Delivers the records of a deliveries topic as rows to ClickHouse."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from faust.types import TP

from pipeline.config.models import ConnectionConfig
from pipeline.delivery.batching import lane_per_partition
from pipeline.delivery.deliverers import Received, build_attempts, record_ages, split_by_partition
from pipeline.delivery.lanes import Guard
from pipeline.delivery.redaction import Redaction
from pipeline.delivery.refusals import FinalOutcome
from pipeline.destination import ClickHouse, Rejected, Settings, Verdict
from pipeline.sinks.clickhouse import ClickHouseSink, Record
from pipeline.sinks.table_row import row_of


class ClickHouseDeliverer:
    """The deliverer of destinations with a ClickHouse sink."""

    def __init__(
        self,
        name: str,
        topic: str,
        connection: ConnectionConfig,
        sink: ClickHouse,
        settings: Settings,
    ) -> None:
        self._sink = ClickHouseSink(
            sink.url(settings),
            sink.user(settings),
            sink.password(settings),
            sink.database(settings),
            sink.table(settings),
            topic,
        )
        self._attempts = build_attempts(name, connection.delivery, Redaction.of(settings), self._write)

    def reset(self) -> None:
        """Reset the sink, because another worker may have written to the table."""
        self._sink.invalidate_offsets()

    async def close(self) -> None:
        """Close the connection."""
        await asyncio.to_thread(self._sink.close)

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[FinalOutcome | None]]:
        """Send each partition in its own lane, because its rows form a chain."""
        items, lanes = lane_per_partition(
            [
                read if isinstance(read, Rejected) else Record(tp.partition, record.offset() or 0, row_of(read.hit))
                for record, read in part
            ]
            for tp, part in received.items()
        )
        return split_by_partition(await self._attempts.deliver(items, lanes, guard, record_ages(received)), received)

    async def _write(self, records: Sequence[Record]) -> Verdict:
        return await asyncio.to_thread(self._sink.write, records)
