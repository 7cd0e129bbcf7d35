"""Records of a deliveries topic as rows in ClickHouse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from faust.types import TP

from pipeline.config.models import ConnectionConfig
from pipeline.delivery.attempts import Attempts
from pipeline.delivery.deliverers import Received, ages_of
from pipeline.destination import ClickHouse, Outcome, Rejected, Settings, Verdict
from pipeline.sinks.clickhouse import ClickHouseSink, Record
from pipeline.sinks.table_row import row_of


class ClickHouseDeliverer:
    """For destinations with a ClickHouse sink."""

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
        delivery = connection.delivery
        self._attempts = Attempts(
            name,
            self._write,
            1,
            delivery.give_up_after,
            time.monotonic,
            per_second=delivery.rate,
            longest_backoff_seconds=delivery.longest_backoff,
        )

    def forget(self) -> None:
        """Another worker may have written to the table."""
        self._sink.forget()

    async def close(self) -> None:
        """Close the connection."""
        await asyncio.to_thread(self._sink.close)

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], keep_on: Callable[[], None]
    ) -> dict[TP, list[Outcome]]:
        """One lane per partition, since the rows of a partition are a chain."""
        items: list[Record | Rejected] = []
        lanes: list[list[list[int]]] = []
        for tp, part in received.items():
            first = len(items)
            items += [
                read if isinstance(read, Rejected) else Record(tp.partition, record.offset() or 0, row_of(read.hit))
                for record, read in part
            ]
            chunk = [first + n for n in range(len(part)) if isinstance(items[first + n], Record)]
            if chunk:
                lanes.append([chunk])
        in_order = iter(await self._attempts.deliver(items, lanes, keep_on, ages_of(received)))
        return {tp: [next(in_order) for _ in part] for tp, part in received.items()}

    async def _write(self, records: Sequence[Record]) -> Verdict:
        return await asyncio.to_thread(self._sink.write, records)
