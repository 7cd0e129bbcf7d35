"""An append-only log in segments: once `append` returns, its values are fsynced and survive a crash.

A record is `length u32, CRC32C u32, sequence u64, bytes` (little endian; the checksum covers sequence and bytes). After a
failed write or fsync a segment is never written again, because the kernel may have dropped dirty pages. Its earlier,
confirmed records are still read.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from pipeline.errors import ConfigurationError
from pipeline.process.durable import sync, sync_folder, write_private

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 1024 * 1024
_HEAD = struct.Struct("<IIQ")
_SEQUENCE = struct.Struct("<Q")
_SUFFIX = ".spill"
_LOCK = ".lock"
_NEAR = 1 << 24
"""Largest distance between the sequence numbers of one segment, so only their three lower bytes vary freely."""
_LIKE_A_HEAD = rb"(?=..[\x00-\x0f]\x00.{4}(?!\x00{3})...(?:%b))"
"""Matches a length below 1 MiB, any checksum, and a sequence number with these upper bytes; not a run of zeros."""


class SpillFull(Exception):
    """The log has reached `max_bytes`."""


class SpillLog:
    """The log in one folder, locked by one process. Not thread-safe: callers must serialise all calls."""

    def __init__(self, folder: Path, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Lock the folder, check segments of a previous instance, remove incomplete records at their ends. Raises ConfigurationError."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._file: int | None = None
        self._path: Path | None = None
        self._written = 0
        self._sequence = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sizes = {path: self._checked(path) for path in sorted(folder.glob(f"*{_SUFFIX}"))}
        except BlockingIOError:
            raise ConfigurationError([f"{folder}: another intake spills there; give each its own --slot"]) from None
        except OSError as error:
            raise ConfigurationError(
                [
                    f"{error.filename or folder}: {error.strerror}; let this user write there, or change `intake.spill.folder`"
                ]
            ) from error

    @property
    def size(self) -> int:
        """Bytes in all segments."""
        return sum(self._sizes.values())

    @property
    def room_bytes(self) -> int:
        """Bytes left below `max_bytes`."""
        return self._max_bytes - self.size

    def append(self, values: Sequence[bytes]) -> None:
        """Write and fsync `values` together. Raises SpillFull or OSError; then none of them counts as stored."""
        parts = []
        for value in values:
            self._sequence += 1
            numbered = _SEQUENCE.pack(self._sequence) + value
            parts.append(_HEAD.pack(len(value), google_crc32c.value(numbered), self._sequence) + value)
        block = b"".join(parts)
        if self.size + len(block) > self._max_bytes:
            raise SpillFull(f"{self._folder} holds {self.size} bytes, {self._max_bytes} are allowed")
        try:
            if self._file is None:
                self._open()
            assert self._file is not None
            assert self._path is not None
            view = memoryview(block)
            while view:
                view = view[os.write(self._file, view) :]
            sync(self._file)
        except OSError:
            self.seal()
            self._remove_unconfirmed()
            raise
        self._written += len(block)
        self._sizes[self._path] = self._written
        if self._written >= self._segment_bytes:
            self.seal()

    def seal(self) -> None:
        """Close the current segment; the next `append` opens a new one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def oldest(self) -> Path | None:
        """Return the oldest closed segment; None if there is none."""
        sealed = [path for path in self._sizes if path != self._path or self._file is None]
        return sealed[0] if sealed else None

    def read(self, path: Path) -> Iterator[bytes]:
        """Yield the values of a segment in order, up to an incomplete end. Damaged bytes between records are copied to a file beside it."""
        for record in _records(path, path.read_bytes()):
            yield record.value

    def remove(self, path: Path) -> None:
        """Delete a segment. Raises OSError."""
        path.unlink(missing_ok=True)
        self.drop(path)
        sync_folder(self._folder)

    def drop(self, path: Path) -> None:
        """Drop a segment from this log, but keep its file for the next start."""
        self._sizes.pop(path, None)

    def close(self) -> None:
        """Close the segment and unlock the folder."""
        self.seal()
        os.close(self._lock)

    def _open(self) -> None:
        path = self._folder / f"{self._sequence:020d}{_SUFFIX}"
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self._path = path
        self._written = 0
        self._sizes[path] = 0
        sync_folder(self._folder)

    def _remove_unconfirmed(self) -> None:
        """Remove an empty segment. On a full disk each failed attempt would leave one, and use up more space."""
        if self._path is not None and self._sizes.get(self._path) == 0:
            with contextlib.suppress(OSError):
                self.remove(self._path)

    def _checked(self, path: Path) -> int:
        data = path.read_bytes()
        end, count = 0, 0
        # A segment without an intact record still has a number in its name.
        self._sequence = max(self._sequence, _number_of(path))
        for record in _records(path, data):
            end = record.end
            self._sequence = max(self._sequence, record.sequence)
            count += 1
        if end < len(data):
            logger.warning(
                "incomplete end of a segment removed: segment=%s at_byte=%d bytes=%d", path, end, len(data) - end
            )
            with path.open("r+b") as file:
                file.truncate(end)
                sync(file.fileno())
        logger.info("spilled hits found, will send them to Kafka: segment=%s hits=%d", path, count)
        return end


def left_behind(folder: Path, slots: Collection[int]) -> list[Path]:
    """Return folders below `folder` that hold spilled hits, belong to none of `slots`, and are not locked by a process."""
    found = []
    for path in sorted(folder.glob(f"*/*{_SUFFIX}")):
        slot = path.parent
        if slot not in found and not (slot.name.isdigit() and int(slot.name) in slots) and not _is_locked(slot):
            found.append(slot)
    return found


def _is_locked(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


class _Record(NamedTuple):
    start: int
    end: int
    sequence: int
    value: bytes


def _number_of(path: Path) -> int:
    """Return the sequence number in the name of a segment: that of a record of its first block."""
    return int(path.stem) if path.stem.isdecimal() else 0


def _records(path: Path, data: bytes) -> Iterator[_Record]:
    """Yield each intact record. Damage without an intact record after it is an incomplete end, which ends the segment."""
    end, sequence = 0, 0
    while (record := _record_at(data, end) or _next_record(data, end, sequence, _number_of(path))) is not None:
        if record.start > end:
            _keep_damaged(path, data, end, record.start)
        yield record
        end, sequence = record.end, record.sequence


def _record_at(data: bytes, offset: int) -> _Record | None:
    start = offset + _HEAD.size
    if start > len(data):
        return None
    length, checksum, sequence = _HEAD.unpack_from(data, offset)
    value = data[start : start + length]
    if len(value) < length or google_crc32c.value(_SEQUENCE.pack(sequence) + value) != checksum:
        return None
    return _Record(offset, start + length, sequence, value)


def _next_record(data: bytes, offset: int, sequence: int, named: int) -> _Record | None:
    """Return the first intact record after damage at `offset`.

    `sequence` is the number of the record before, 0 for none; `named` is the number in the segment's name.
    """
    near = sequence or named
    upper = {_SEQUENCE.pack(number)[3:] for number in (max(0, near - _NEAR), near, near + _NEAR)}
    heads = re.compile(_LIKE_A_HEAD % b"|".join(map(re.escape, upper)), re.DOTALL)
    for found in heads.finditer(data, offset + 1):
        record = _record_at(data, found.start())
        if record is not None and record.sequence > sequence:
            return record
    return None


def _keep_damaged(path: Path, data: bytes, start: int, end: int) -> None:
    kept = path.with_name(f"{path.name}.damaged-{start}")
    try:
        if kept.exists() and kept.read_bytes() == data[start:end]:  # already kept by the check at the start
            return
        write_private(kept, data[start:end])
    except OSError as error:  # the intact records must still reach Kafka
        logger.error(
            "damaged bytes lost: segment=%s start_byte=%d end_byte=%d copy=%s error=%s",
            *(path, start, end, kept, error.strerror),
        )
        return
    logger.error(
        "damaged bytes kept, not sent to Kafka: segment=%s start_byte=%d end_byte=%d copy=%s", path, start, end, kept
    )
