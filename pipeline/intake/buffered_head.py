"""Counts the bytes of an unfinished header or trailer, which the parser buffers without a callback."""

from __future__ import annotations


class BufferedHead:
    """Bytes buffered by the parser of one HTTP connection since its last callback."""

    __slots__ = ("_bytes", "_progress")

    def __init__(self) -> None:
        self._progress: tuple[object, int, int] = (None, 0, 0)
        self._bytes = 0

    def grow(self, received_bytes: int, headers: object, header_bytes: int, body_bytes: int) -> int:
        """Add `received_bytes`, and return the bytes buffered now.

        The other arguments change with each callback: the headers' object (compared by identity), and the bytes of headers and body.
        """
        progress = headers, header_bytes, body_bytes
        if progress[0] is self._progress[0] and progress[1:] == self._progress[1:]:
            self._bytes += received_bytes
        else:
            self._progress, self._bytes = progress, 0
        return self._bytes
