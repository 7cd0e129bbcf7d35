"""What the parser holds back because it is unfinished, a header or one behind a chunked body: no callback sees it grow."""

from __future__ import annotations


class BufferedHead:
    """Counts what one connection has received since the parser last told something."""

    __slots__ = ("_bytes", "_told")

    def __init__(self) -> None:
        self._told: tuple[object, int, int] = (None, 0, 0)
        self._bytes = 0

    def grow(self, received_bytes: int, headers: object, header_bytes: int, body_bytes: int) -> int:
        """The bytes held back after so many more. What the parser has told so far: whose headers, and their and the body's bytes."""
        told = headers, header_bytes, body_bytes
        if told[0] is self._told[0] and told[1:] == self._told[1:]:
            self._bytes += received_bytes
        else:
            self._told, self._bytes = told, 0
        return self._bytes
