"""Wraps httptools' parser so that it ignores `Upgrade` headers (RFC 9110, 7.8)."""

from __future__ import annotations

from typing import Any

import httptools

from pipeline.intake import answers
from pipeline.stages.accept import Refusal


class RequestParser:
    """Calls `callbacks` as httptools does.

    httptools stops after a head with an `Upgrade` header. This server supports no other protocol. So `on_headers_complete`
    sets `without_offer` to the same head without `Upgrade`, and a new parser reads that head again.
    """

    __slots__ = ("_callbacks", "_parser", "without_offer")

    def __init__(self, callbacks: Any) -> None:
        self._callbacks = callbacks
        self._parser = httptools.HttpRequestParser(callbacks)
        self.without_offer = b""

    def head(self) -> tuple[bytes, str, bool]:
        """Return method, HTTP version such as "1.1", and keep-alive of the last head."""
        parser = self._parser
        return parser.get_method(), parser.get_http_version(), parser.should_keep_alive()

    @property
    def upgrades(self) -> bool:
        """Whether the parser stops after this head because of an `Upgrade` header."""
        upgrades: bool = self._parser.should_upgrade()
        return upgrades

    def feed(self, data: bytes) -> Refusal | bool:
        """Parse `data`. Return True on success; else nothing more can be parsed, and a Refusal is the answer, if there is one."""
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
