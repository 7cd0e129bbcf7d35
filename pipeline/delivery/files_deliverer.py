"""From records of a deliveries topic to files, in a folder or in a bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

from faust.types import TP

from pipeline.config.models import ConnectionConfig
from pipeline.delivery.batching import lane_per_partition
from pipeline.delivery.deliverers import Received, ages_since, attempts_of, by_partition
from pipeline.delivery.lanes import Guard
from pipeline.delivery.refusals import FinalOutcome
from pipeline.destination import Files, Misconfigured, Rejected, Settings, Verdict
from pipeline.redaction import Redaction
from pipeline.sinks.files import FileRecord, FilesSink, Format
from pipeline.sinks.folders import open_folder


class _Record(NamedTuple):
    """A row, and the partition that its file belongs to."""

    partition: int
    row: FileRecord


class FilesDeliverer:
    """For destinations with a files sink."""

    def __init__(self, name: str, topic: str, connection: ConnectionConfig, sink: Files, settings: Settings) -> None:
        self._topic = topic
        self._declared = sink
        self._settings = settings
        self._sink: FilesSink | None = None
        self._attempts = attempts_of(name, connection.delivery, Redaction.of(settings), self._write)

    def forget(self) -> None:
        """Another worker may have written to the folder."""
        if self._sink is not None:
            self._sink.invalidate_offsets()

    async def close(self) -> None:
        """Keeps nothing open."""

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[FinalOutcome | None]]:
        """One file and one lane per partition."""
        items, lanes = lane_per_partition(
            [
                read
                if isinstance(read, Rejected)
                else _Record(tp.partition, FileRecord(record.offset() or 0, read.value, read.hit))
                for record, read in part
            ]
            for tp, part in received.items()
        )
        return by_partition(await self._attempts.deliver(items, lanes, guard, _ages_of_files(received)), received)

    async def _write(self, records: Sequence[_Record]) -> Verdict:
        return await asyncio.to_thread(self._write_file, records)

    def _write_file(self, records: Sequence[_Record]) -> Verdict:
        if self._sink is None:
            # Here and not at the start: an address or a key that can't be used is this connection's trouble alone.
            try:
                folder = open_folder(self._declared.folder(self._settings), self._declared.options(self._settings))
            except ValueError as error:
                return Misconfigured(str(error))
            self._sink = FilesSink(folder, cast(Format, self._declared.format(self._settings)), self._topic)
        return self._sink.write(records[0].partition, [record.row for record in records])


def _ages_of_files(received: Mapping[TP, Sequence[Received]]) -> Callable[[int], float]:
    """How long the record at a position waits, in seconds: as long as the youngest of its file, with which alone it is given up.

    A file is named by its first offset: without the first of its hits it had another name, and a write whose answer was lost, and
    which is there nevertheless, would hold the others a second time.
    """
    appended_ms: list[int] = []
    for part in received.values():
        appended_ms += [max(record.timestamp()[1] for record, _ in part)] * len(part)
    return ages_since(appended_ms)
