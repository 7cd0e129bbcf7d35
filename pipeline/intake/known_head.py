"""Cache of a connection's last head: clients repeat the same bytes with each request, except for the Content-Length."""

from __future__ import annotations

import re
from hmac import compare_digest

from pipeline.intake.exchange import Exchange
from pipeline.intake.head import Head

_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,7})\r\n", re.IGNORECASE)
_UNPLAIN = (b"transfer-encoding", b"expect", b"upgrade")
"""Headers that change how a request is read; a head with one of them is not cached."""
_NEW_HEADS = 16
"""Heads that are considered for the cache of one connection. Behind a proxy each request may have a different head."""


class KnownHead:
    """The last head of one connection, split around the digits of its Content-Length, with its parsed `Head`."""

    __slots__ = ("_after", "_before", "_head", "_left", "_start", "_version")

    def __init__(self) -> None:
        self._head: Head | None = None
        self._before = self._after = b""
        self._start = self._version = 0
        self._left = _NEW_HEADS

    def exchange(self, data: bytes, version: int) -> Exchange | None:
        """Return the exchange if `data` is exactly one request with the cached head and an allowed body size.

        None means: fall back to the parser. `version` is `ServerState.version`. A proxy may send requests of several clients
        through one connection, so heads, which hold tokens, are compared in constant time.
        """
        head, start = self._head, self._start
        if head is None or version != self._version or not compare_digest(data[:start], self._before):
            return None
        end = data.find(b"\r", start, start + 8)
        digits = data[start:end]
        body_start = end + len(self._after)
        if not digits.isdigit() or not compare_digest(data[end:body_start], self._after):
            return None
        length = int(digits)
        if len(data) != body_start + length or length > head.body_bytes:
            return None
        exchange = Exchange(head)
        exchange.receive(data[body_start:])
        return exchange

    def learn(self, data: bytes, head: Head, version: int) -> None:
        """Cache the head of `data`, which the parser read as exactly one request. Only a plain head with a Content-Length is cached."""
        if not self._left or head.answer is not None:
            return
        self._left -= 1
        size = data.find(b"\r\n\r\n") + 4
        lower = data[:size].lower()
        found = _LENGTH.search(data, 0, size)
        if (
            found is not None
            and lower.count(b"content-length") == 1
            and not any(name in lower for name in _UNPLAIN)
            and size + int(found[1]) == len(data)
        ):
            self._head, self._version = head, version
            self._before, self._after, self._start = data[: found.start(1)], data[found.end(1) : size], found.start(1)
