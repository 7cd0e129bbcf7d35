"""Writes to the disk so that the data survives a loss of power, on every operating system."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

# On macOS, fsync only passes the data to the drive, whose cache can lose it (fsync(2)).
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


def sync(descriptor: int) -> None:
    """Make what was written to an open file durable. Raises OSError."""
    if _FULL_SYNC is not None:
        try:
            fcntl.fcntl(descriptor, _FULL_SYNC)
            return
        except OSError:
            pass  # not supported by every file system, such as a network share, nor for a folder
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def write_private(file: Path, content: bytes) -> None:
    """Write `file` atomically and durably, readable by its owner only (0600). Raises OSError."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            sync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(file.parent)
