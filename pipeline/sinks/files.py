"""Writes files that hold each record of a topic once, also after crashes and with zombie writers.

A file is named by topic, partition and first offset. It appears complete and is never replaced (pipeline/sinks/folders.py). If two
writers create the same name, the second one fails, reads the last offset of the existing file, and continues after it. So the files
of a partition form one chain, and neither a repeated batch nor a zombie can duplicate or lose a record.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from pipeline.codec.printable import in_one_line
from pipeline.destination import Delivered, Misconfigured, Outcome, Retry, RoutedHit
from pipeline.sinks.folders import Folder, UnusableFolder

Format = Literal["jsonl", "parquet"]

_MAX_OFFSETS_PER_FILE = 1_000_000
"""No file spans more offsets, because a batch holds some thousand records. So older files of a bucket need not be listed."""
_OPERATOR_ERRORS = frozenset(
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
"""Errors of an unusable path or file system, which the operator must fix. A full or broken disk is not among them."""


class _Line(msgspec.Struct, gc=False):
    """The members of a JSON line that this sink wrote; members that senders choose are skipped."""

    hitId: str
    offset: int = msgspec.field(name="_offset")


_line_decoder = msgspec.json.Decoder(_Line)
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class FileRecord(NamedTuple):
    """One record of the deliveries topic. `value` is its JSON, `hit` the same value decoded."""

    offset: int
    value: bytes
    hit: RoutedHit


class FilesSink:
    """Writes the files of one topic into `folder`."""

    def __init__(self, folder: Folder, format: Format, topic: str) -> None:
        self._folder = folder
        self._format = format
        self._topic = topic
        self._last_offsets: dict[int, int] = {}
        """Last stored offset by partition."""

    def invalidate_offsets(self) -> None:
        """Drop the cached last offsets, because another worker may have written since; the next write lists the folder again."""
        self._last_offsets = {}

    def write(self, partition: int, records: Sequence[FileRecord]) -> Outcome:
        """Store those of `records`, in offset order, that are not stored yet. Return one outcome for all; it is never Rejected."""
        if not records:
            return Delivered()
        # Another thread can call `invalidate_offsets` during this write. It replaces the dict, so the results of this write are discarded.
        last_offsets = self._last_offsets
        try:
            if partition in last_offsets:
                last = last_offsets[partition]
            else:
                last = self._end_of_chain(partition, records[0])
            while rest := [record for record in records if record.offset > last]:
                name = f"{self._prefix(partition)}{rest[0].offset:020d}.{self._format}"
                if self._folder.create(name, self._encode(partition, rest)):
                    last = rest[-1].offset
                else:
                    last = self._last_offset(name)
        except OSError as error:
            last_offsets.pop(partition, None)  # the failed call may have stored the file
            return outcome_of_error(error)
        last_offsets[partition] = last
        return Delivered()

    def _prefix(self, partition: int) -> str:
        return f"{self._topic}-{partition}-"

    def _end_of_chain(self, partition: int, first: FileRecord) -> int:
        """Return the last stored offset, or -1. Raises UnusableFolder if another hit is stored at the offset of `first`.

        Files that end long before `first` are not listed, so they also give -1.
        """
        prefix = self._prefix(partition)
        names = [
            name
            for name in self._folder.names(prefix, f"{prefix}{max(0, first.offset - _MAX_OFFSETS_PER_FILE):020d}")
            if name.endswith(f".{self._format}") and name[len(prefix) : -len(self._format) - 1].isdigit()
        ]
        before = [name for name in names if name <= f"{prefix}{first.offset:020d}.{self._format}"]
        if before:
            stored = self._hit_ids(max(before))
            if first.offset <= max(stored) and stored.get(first.offset) != first.hit.hitId:
                raise UnusableFolder(
                    f"{max(before)} holds another hit at offset {first.offset}. "
                    "If the topic was recreated, configure another folder"
                )
        return self._last_offset(max(names)) if names else -1

    def _encode(self, partition: int, records: Sequence[FileRecord]) -> bytes:
        if self._format == "jsonl":
            return b"".join(
                b'{"_partition":%d,"_offset":%d,' % (partition, record.offset)
                + in_one_line(_without_reserved_members(record.value)[1:])
                + b"\n"
                for record in records
            )
        from pipeline.sinks import parquet

        return parquet.encode(partition, records)

    def _last_offset(self, name: str) -> int:
        return max(self._hit_ids(name))

    def _hit_ids(self, name: str) -> Mapping[int, str]:
        """Return the hitIds in a file by offset; at least one. Raises UnusableFolder if the file is damaged or empty."""
        content = self._folder.read(name)
        try:
            if self._format == "parquet":
                from pipeline.sinks import parquet

                hit_ids = parquet.hit_ids(content)
            else:
                hit_ids = {line.offset: line.hitId for line in _line_decoder.decode_lines(content)}
        except msgspec.DecodeError as error:
            raise UnusableFolder(f"{name} cannot be read ({type(error).__name__}); move it away") from None
        except ValueError as error:
            raise UnusableFolder(f"{name} cannot be read ({error}); move it away") from None
        if not hit_ids:
            raise UnusableFolder(f"{name} is empty; move it away")
        return hit_ids


def outcome_of_error(error: OSError) -> Retry | Misconfigured:
    """Return the outcome of `error`. It never rejects a hit, because only the folder or the way to it can be at fault."""
    if isinstance(error, UnusableFolder):
        return Misconfigured(str(error))
    if error.errno in _OPERATOR_ERRORS:
        return Misconfigured(f"{error.filename}: {error.strerror}; fix the path or its permissions")
    return Retry(str(error))


def _without_reserved_members(value: bytes) -> bytes:
    """Return the hit without members `_offset` and `_partition`. This sink adds its own, and parsers disagree on repeated keys."""
    if b'"_offset"' not in value and b'"_partition"' not in value:
        return value
    return msgspec.json.encode(
        {name: raw for name, raw in _members_decoder.decode(value).items() if name not in ("_offset", "_partition")}
    )
