"""Writes the broker's output to a file, with the time of each line, and rotates the file.

On a full disk lines are lost, but the broker continues.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO

LOG_BYTES = 10_000_000
LOG_FILES = 3
"""Number of files: the current one and two older ones, with the suffixes `.1` and `.2`."""
_LINE_BYTES = 65_536
_REMEMBERED_LINES = 20


class BrokerLog:
    """Copies a pipe to `path` on its own thread. On a full disk lines are lost, but the pipe is still read."""

    def __init__(self, path: Path, file_bytes: int = LOG_BYTES, files: int = LOG_FILES) -> None:
        self.path = path
        self._file_bytes = file_bytes
        self._files = files
        self._last: deque[str] = deque(maxlen=_REMEMBERED_LINES)
        self._thread: threading.Thread | None = None

    def follow(self, stream: IO[bytes]) -> None:
        """Copy `stream` until it ends. Clears the lines of an earlier broker from `last_lines`."""
        self._last = deque(maxlen=_REMEMBERED_LINES)
        self._thread = threading.Thread(target=self._copy, args=(stream,), name="broker log", daemon=True)
        self._thread.start()

    def last_lines(self, count: int = _REMEMBERED_LINES) -> list[str]:
        """Return the last lines of the current broker. After its end they are complete."""
        if self._thread is not None:
            self._thread.join(1.0)
        return list(self._last.copy())[-count:]

    def _copy(self, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(_LINE_BYTES):
                self._last.append(line.decode(errors="replace").rstrip())
                with contextlib.suppress(OSError):
                    # Add the time here, because the JVM's own warnings and stack traces have none.
                    self._write(time.strftime("%Y-%m-%d %H:%M:%S ").encode() + line)

    def _write(self, line: bytes) -> None:
        if self.path.exists() and self.path.stat().st_size + len(line) > self._file_bytes:
            for number in range(self._files - 1, 0, -1):
                older = self._name(number - 1)
                if older.exists():
                    older.replace(self._name(number))
        # Opened for each line: there are few lines, and the file may be moved at any time.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def _name(self, number: int) -> Path:
        return self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")
