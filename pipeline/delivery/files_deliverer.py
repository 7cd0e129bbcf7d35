"""Delivers the records of a deliveries topic to files in a folder or bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

from faust.types import TP

from pipeline.config.models import ConnectionConfig
from pipeline.delivery.batching import lane_per_partition
from pipeline.delivery.deliverers import Received, ages_at, build_attempts, split_by_partition
from pipeline.delivery.lanes import Guard
from pipeline.delivery.redaction import Redaction
from pipeline.delivery.refusals import FinalOutcome
from pipeline.destination import Files, Misconfigured, Rejected, Settings, Verdict
from pipeline.sinks.files import FileRecord, FilesSink, Format
from pipeline.sinks.folders import open_folder


class _Record(NamedTuple):
    """A row and the partition of its file."""

    partition: int
    row: FileRecord


class FilesDeliverer:
    """The deliverer of destinations with a files sink."""

    def __init__(self, name: str, topic: str, connection: ConnectionConfig, sink: Files, settings: Settings) -> None:
        self._topic = topic
        self._declared = sink
        self._settings = settings
        self._sink: FilesSink | None = None
        self._attempts = build_attempts(name, connection.delivery, Redaction.of(settings), self._write)

    def reset(self) -> None:
        """Reset the sink, because another worker may have written to the folder."""
        if self._sink is not None:
            self._sink.invalidate_offsets()

    async def close(self) -> None:
        """Do nothing: no file stays open between writes."""

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[FinalOutcome | None]]:
        """Write one file per partition, each in its own lane."""
        items, lanes = lane_per_partition(
            [
                read
                if isinstance(read, Rejected)
                else _Record(tp.partition, FileRecord(record.offset() or 0, read.value, read.hit))
                for record, read in part
            ]
            for tp, part in received.items()
        )
        return split_by_partition(await self._attempts.deliver(items, lanes, guard, _file_ages(received)), received)

    async def _write(self, records: Sequence[_Record]) -> Verdict:
        return await asyncio.to_thread(self._write_file, records)

    def _write_file(self, records: Sequence[_Record]) -> Verdict:
        if self._sink is None:
            # Opened here and not at the start, so that an invalid address or key affects only this connection.
            try:
                folder = open_folder(self._declared.folder(self._settings), self._declared.options(self._settings))
            except ValueError as error:
                return Misconfigured(str(error))
            self._sink = FilesSink(folder, cast(Format, self._declared.format(self._settings)), self._topic)
        return self._sink.write(records[0].partition, [record.row for record in records])


def _file_ages(received: Mapping[TP, Sequence[Received]]) -> Callable[[int], float]:
    """Return a function from a position to its age in seconds, which is that of the youngest record of its file.

    So a file is given up as a whole. Its name contains its first offset; without its first hits it would get another name. If the
    response to a successful write was lost, the other hits would then be stored twice.
    """
    appended_ms: list[int] = []
    for part in received.values():
        appended_ms += [max(record.timestamp()[1] for record, _ in part)] * len(part)
    return ages_at(appended_ms)
