"""httptools' parser, which also ignores offers of other protocols (RFC 9110, 7.8)."""

from __future__ import annotations

from typing import Any

import httptools

from pipeline.intake import answers
from pipeline.stages.accept import Refusal


class RequestParser:
    """Calls `callbacks` as httptools does.

    It leaves what follows a head that offers another protocol to that protocol, which we don't speak. So whoever reads such
    a head sets `without_offer`, the head as its client would have sent it without the offer, and it is read once more.
    """

    __slots__ = ("_callbacks", "_parser", "without_offer")

    def __init__(self, callbacks: Any) -> None:
        self._callbacks = callbacks
        self._parser = httptools.HttpRequestParser(callbacks)
        self.without_offer = b""

    def head(self) -> tuple[bytes, str, bool]:
        """Return method, version of HTTP, such as 1.1, and whether another request may follow, of the last head."""
        parser = self._parser
        return parser.get_method(), parser.get_http_version(), parser.should_keep_alive()

    @property
    def upgrades(self) -> bool:
        """Will the parser leave the rest to another protocol?"""
        upgrades: bool = self._parser.should_upgrade()
        return upgrades

    def feed(self, data: bytes) -> Refusal | bool:
        """True when all of it has been read. Else nothing more can be, and the answer to what is broken, if there is one."""
        rest: bytes | memoryview = data
        try:
            while True:
                try:
                    self._parser.feed_data(rest)
                    return True
                except httptools.HttpParserUpgrade as upgrade:
                    head, self.without_offer = self.without_offer, b""
                    if not head:
                        return False
                    rest = memoryview(rest)[upgrade.args[0] :]
                    self._parser = httptools.HttpRequestParser(self._callbacks)
                    self._parser.feed_data(head)
        except httptools.HttpParserInvalidMethodError:
            return answers.method_not_allowed("GET, POST, OPTIONS")
        except httptools.HttpParserError:
            return answers.BROKEN
