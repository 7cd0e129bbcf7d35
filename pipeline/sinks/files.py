"""Files that hold each record of a topic once, whatever crashes or comes back from the dead.

A file is named by topic, partition and first offset, appears whole and is never replaced (pipeline/sinks/folders.py): of two writers
that want the same name one loses, reads how far the winner's file goes, and continues behind it. The files of a partition are so
one chain, and a repeated batch or a zombie can neither double nor lose a row.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from pipeline.codec.printable import in_one_line
from pipeline.destination import Delivered, Misconfigured, Outcome, Retry, RoutedHit
from pipeline.sinks.folders import Folder, UnfitFolder

Format = Literal["jsonl", "parquet"]

_FILE_OFFSETS = 1_000_000
"""No file reaches so far: a batch is some thousand records. What ends before needs no look, and a bucket may hold years."""
_OPERATORS = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENOSYS,
        errno.ENOTDIR,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EROFS,
        errno.EXDEV,
    }
)
"""What this machine says of a path or a file system that can't be used; a disk that is full or broken is none of these."""


class _Line(msgspec.Struct, gc=False):
    """What a line of JSON says of its place; the rest, which senders choose, is skipped."""

    hitId: str
    offset: int = msgspec.field(name="_offset")


_line = msgspec.json.Decoder(_Line)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Row(NamedTuple):
    """One record of the deliveries topic."""

    offset: int
    value: bytes
    hit: RoutedHit


class FilesSink:
    """Writes the files of one topic into `folder`."""

    def __init__(self, folder: Folder, format: Format, topic: str) -> None:
        self._folder = folder
        self._format = format
        self._topic = topic
        self._stored: dict[int, int] = {}

    def forget(self) -> None:
        """Another worker may have written meanwhile: look at the folder again before the next write."""
        self._stored = {}

    def write(self, partition: int, rows: Sequence[Row]) -> Outcome:
        """Store `rows`, in offset order, behind what is there: one outcome for all of them, which is never Rejected."""
        if not rows:
            return Delivered()
        stored = self._stored  # `forget` may come from another thread meanwhile; then what this one learns is old
        try:
            end = stored[partition] if partition in stored else self._end_of_chain(partition, rows[0])
            while rest := [row for row in rows if row.offset > end]:
                name = f"{self._prefix(partition)}{rest[0].offset:020d}.{self._format}"
                if self._folder.create(name, self._encode(partition, rest)):
                    end = rest[-1].offset
                else:
                    end = self._last_offset(name)
        except OSError as error:
            stored.pop(partition, None)  # what a call that failed has done is not known
            return verdict_of(error)
        stored[partition] = end
        return Delivered()

    def _prefix(self, partition: int) -> str:
        return f"{self._topic}-{partition}-"

    def _end_of_chain(self, partition: int, first: Row) -> int:
        """The last offset that is there from `first` on, else -1. Raises UnfitFolder when `first` is there as another hit."""
        prefix = self._prefix(partition)
        names = [
            name
            for name in self._folder.names(prefix, f"{prefix}{max(0, first.offset - _FILE_OFFSETS):020d}")
            if name.endswith(f".{self._format}") and name[len(prefix) : -len(self._format) - 1].isdigit()
        ]
        before = [name for name in names if name <= f"{prefix}{first.offset:020d}.{self._format}"]
        if before:
            held = self._held(max(before))
            if first.offset <= max(held) and held.get(first.offset) != first.hit.hitId:
                raise UnfitFolder(
                    f"{max(before)} holds another hit at offset {first.offset}: was the topic made anew? Name another folder"
                )
        return self._last_offset(max(names)) if names else -1

    def _encode(self, partition: int, rows: Sequence[Row]) -> bytes:
        if self._format == "jsonl":
            return b"".join(
                b'{"_partition":%d,"_offset":%d,' % (partition, row.offset)
                + in_one_line(_without_ours(row.value)[1:])
                + b"\n"
                for row in rows
            )
        from pipeline.sinks import parquet

        return parquet.encode(partition, rows)

    def _last_offset(self, name: str) -> int:
        return max(self._held(name))

    def _held(self, name: str) -> Mapping[int, str]:
        """The hitIds of a file by their offsets; at least one."""
        content = self._folder.read(name)
        try:
            if self._format == "parquet":
                from pipeline.sinks import parquet

                held = parquet.hit_ids(content)
            else:
                held = {line.offset: line.hitId for line in _line.decode_lines(content)}
        except msgspec.DecodeError as error:
            raise UnfitFolder(f"{name} can't be read ({type(error).__name__}); move it away") from None
        except ValueError as error:
            raise UnfitFolder(f"{name} can't be read ({error}); move it away") from None
        if not held:
            raise UnfitFolder(f"{name} is empty; move it away")
        return held


def verdict_of(error: OSError) -> Retry | Misconfigured:
    """What to do next: a hit is never at fault, only the folder, or what is between."""
    if isinstance(error, UnfitFolder):
        return Misconfigured(str(error))
    if error.errno in _OPERATORS:
        return Misconfigured(f"{error.filename}: {error.strerror}; mend the path or its rights")
    return Retry(str(error))


def _without_ours(value: bytes) -> bytes:
    """The hit without members that bear our own names: two of one name mean this to one reader and that to another."""
    if b'"_offset"' not in value and b'"_partition"' not in value:
        return value
    return msgspec.json.encode(
        {name: raw for name, raw in _members.decode(value).items() if name not in ("_offset", "_partition")}
    )
