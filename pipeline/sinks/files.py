"""Files that hold each record of a topic once, whatever crashes or comes back from the dead.

A file is named by topic, partition and first offset, appears whole (written aside, synced, linked) and is never replaced: of two writers
that want the same name one loses, reads how far the winner's file goes, and continues behind it. The files of a partition are so
one chain, and a repeated batch or a zombie can neither double nor lose a row.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.destination import RoutedHit

Format = Literal["jsonl", "parquet"]

_SCHEMA = pa.schema(
    [
        ("hitId", pa.string()),
        ("projectId", pa.string()),
        ("receivedAt", pa.string()),
        ("sentAt", pa.string()),
        ("userId", pa.string()),
        ("anonymousId", pa.string()),
        ("event", pa.string()),
        ("context", pa.string()),
        ("integrations", pa.string()),
        ("options", pa.string()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
    ]
)


class Row(NamedTuple):
    """One record of the deliveries topic."""

    offset: int
    value: bytes
    hit: RoutedHit


class FilesSink:
    """Writes the files of one topic into `folder`."""

    def __init__(self, folder: Path, format: Format, topic: str) -> None:
        self._folder = folder
        self._format = format
        self._topic = topic
        self._stored: dict[int, int] = {}

    def forget(self) -> None:
        """Another worker may have written meanwhile: look at the folder again before the next write."""
        self._stored.clear()

    def write(self, partition: int, rows: Sequence[Row]) -> None:
        """Store `rows`, in offset order, behind what is there. Raises OSError when the disk refuses."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if partition not in self._stored:
            self._stored[partition] = self._end_of_chain(partition)
        while rest := [row for row in rows if row.offset > self._stored[partition]]:
            file = self._folder / f"{self._prefix(partition)}{rest[0].offset:020d}.{self._format}"
            if self._create(file, self._encode(partition, rest)):
                self._stored[partition] = rest[-1].offset
            else:
                self._stored[partition] = self._last_offset(file)

    def _prefix(self, partition: int) -> str:
        return f"{self._topic}-{partition}-"

    def _end_of_chain(self, partition: int) -> int:
        prefix = self._prefix(partition)
        names = [
            name
            for name in os.listdir(self._folder)
            if name.startswith(prefix)
            and name.endswith(f".{self._format}")
            and name[len(prefix) : -len(self._format) - 1].isdigit()
        ]
        return self._last_offset(self._folder / max(names)) if names else -1

    def _create(self, file: Path, content: bytes) -> bool:
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            try:
                os.link(partial, file)
            except FileExistsError:
                return False
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True

    def _encode(self, partition: int, rows: Sequence[Row]) -> bytes:
        if self._format == "jsonl":
            return b"".join(
                b'{"_partition":%d,"_offset":%d,' % (partition, row.offset) + row.value[1:] + b"\n" for row in rows
            )
        columns = {name: [getattr(row.hit, name) for row in rows] for name in _SCHEMA.names[:6]}
        for name in _SCHEMA.names[6:10]:
            columns[name] = [_json_text(getattr(row.hit, name)) for row in rows]
        columns["_partition"] = [partition] * len(rows)
        columns["_offset"] = [row.offset for row in rows]
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=_SCHEMA), buffer, compression="zstd")
        return buffer.getvalue()

    def _last_offset(self, file: Path) -> int:
        if self._format == "parquet":
            return int(pq.read_table(file, columns=["_offset"])["_offset"][-1].as_py())
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - (1 << 20)))
            last = stream.read().splitlines()[-1]
        return int(json.loads(last)["_offset"])


def _json_text(raw: msgspec.Raw) -> str | None:
    text = bytes(raw)
    return None if text == b"null" else text.decode()
