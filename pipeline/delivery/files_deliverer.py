"""From records of a deliveries topic to files, in a folder or in a bucket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from faust.types import TP

from pipeline.delivery.deliverers import Received
from pipeline.destination import Delivered, Files, Outcome, Rejected, Settings
from pipeline.sinks.files import FilesSink, Format, Row
from pipeline.sinks.folders import open_folder
from pipeline.telemetry.waiting import WAITING, Waiting

logger = logging.getLogger("hitrouter.deliver")

_PAUSE_SECONDS = 5.0


class FilesDeliverer:
    """For destinations with a files sink."""

    def __init__(self, name: str, topic: str, sink: Files, settings: Settings) -> None:
        self._name = name
        self._topic = topic
        self._declared = sink
        self._settings = settings
        self._sink: FilesSink | None = None

    def forget(self) -> None:
        """Another worker may have written to the folder."""
        if self._sink is not None:
            self._sink.forget()

    async def close(self) -> None:
        """Keeps nothing open."""

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], keep_on: Callable[[], None]
    ) -> dict[TP, list[Outcome]]:
        """Write one file per partition; while the folder refuses, the connection waits."""
        outcomes: dict[TP, list[Outcome]] = {}
        for tp, part in received.items():
            rows: list[Row] = []
            found: list[Outcome] = []
            for record, read in part:
                if isinstance(read, Rejected):
                    found.append(read)
                else:
                    rows.append(Row(record.offset() or 0, read.value, read.hit))
                    found.append(Delivered())
            while True:
                keep_on()
                try:
                    await asyncio.to_thread(self._write, tp.partition, rows)
                    break
                except Exception as error:  # whatever it is: the process, which would end, delivers for others, too
                    logger.error(
                        "%s waits: %s; make room, or mend the folder, the bucket or its credentials",
                        self._name,
                        error,
                        exc_info=None if isinstance(error, OSError | ValueError) else error,
                    )
                    WAITING.begin(self._name, Waiting(False, str(error), _PAUSE_SECONDS))
                    await asyncio.sleep(_PAUSE_SECONDS)
            WAITING.end(self._name)
            outcomes[tp] = found
        return outcomes

    def _write(self, partition: int, rows: Sequence[Row]) -> None:
        if self._sink is None:
            # Here and not at the start: an address or a key that can't be used is this connection's trouble alone.
            folder = open_folder(self._declared.folder(self._settings), self._declared.options(self._settings))
            self._sink = FilesSink(folder, cast(Format, self._declared.format(self._settings)), self._topic)
        self._sink.write(partition, rows)
