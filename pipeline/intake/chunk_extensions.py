"""Limits the size of chunk extensions, which the parser skips without a callback."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.intake import answers
from pipeline.stages.accept import Refusal

EXTENSION_BYTES = 256
"""Limit for one chunk, from its first semicolon on. Real clients send no extensions."""


class ChunkExtensions:
    """Splits the input of one HTTP connection so that the bytes of chunk extensions can be counted."""

    __slots__ = ("bytes_so_far",)

    def __init__(self) -> None:
        self.bytes_so_far = 0
        """Bytes received so far of an unfinished extension."""

    def feed(
        self, data: bytes, feed: Callable[[bytes], Refusal | bool], progress: Callable[[], object]
    ) -> Refusal | bool:
        """Feed `data` in parts; return the last result of `feed`, or the refusal of an extension that is too long.

        `progress` returns a value that changes with each parser callback inside a chunked body, and None outside of one. Only in a
        chunk-size line does the parser consume a semicolon, and what follows it, without a callback.
        """
        start = 0
        while start < len(data):
            if not self.bytes_so_far:
                semicolon = data.find(b";", start)
                end = semicolon if semicolon >= 0 else len(data)
                read = feed(data[start:end]) if end > start else True
                if read is not True or end == len(data):
                    return read
                start = end
            line_end = data.find(b"\r", start)
            end = line_end if line_end >= 0 else len(data)
            before = progress()
            read = feed(data[start:end]) if end > start else True
            if read is not True:
                return read
            if before is None or progress() != before:
                self.bytes_so_far = 0
            else:
                self.bytes_so_far += end - start
                if self.bytes_so_far > EXTENSION_BYTES:
                    return answers.LONG_EXTENSION
                if line_end >= 0:
                    self.bytes_so_far = 0
            start = end
        return True


def may_begin_chunked(data: bytes) -> bool:
    """Return whether `data` may hold a complete head of a chunked request, followed by a semicolon."""
    last = data.rfind(b";")
    head_end = data.find(b"\r\n\r\n", 0, last) if data.find(b"\n", 0, last) >= 0 else -1
    if head_end < 0:
        return False
    heads = data if data.find(b"\n", head_end + 4) >= 0 else data[:head_end]
    return b"chunked" in heads.lower()
