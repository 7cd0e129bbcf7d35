"""A sample of the last refused requests of one intake process, for `hitrouter tail --refused`.

Refused requests are not written to Kafka, since strangers can send any number of them. The process keeps a bounded sample in
memory: per code the last KEPT, and at most PER_SECOND new ones per second. The rest is counted. No entry holds a token, a query
or an IP address.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

import msgspec

from pipeline.codec.ip_address import plain_ip
from pipeline.codec.printable import escape_controls, shorten
from pipeline.codec.refused_request import RefusedRequest
from pipeline.stages.accept import Code, Refusal

KEPT = 100
"""Entries kept per code."""
PER_SECOND = 20
"""New entries per code and second."""
TEXT_CHARACTERS = 100
MESSAGE_CHARACTERS = 300
BODY_CHARACTERS = 2_000
BODIES_SECONDS = 30.0
"""Time for which bodies are kept after a request for them."""
_LOOKS_LIKE_A_KEY = re.compile(r"(?=[^0-9]*[0-9])[A-Za-z0-9_~-]{16,}")
_WRITE_KEY = re.compile(r'("(?:writeKey|write_key)"\s{0,8}:\s{0,8}")(?:[^"\\]|\\.)*')
_IP = re.compile(r'("(?:i|\\u0069)(?:p|\\u0070)"\s{0,8}:\s{0,8}")(?:[^"\\]|\\.)*')
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_WORD = re.compile(r"""[^\s/:;,=&?@()\[\]{}<>|"'\\]+""")
"""A run of characters between the separators of a URL or a JSON body."""
_GZIP = 31  # zlib's window bits for the gzip format


@dataclass(slots=True)
class _Kind:
    """The sample of one code."""

    entries: deque[RefusedRequest] = field(default_factory=lambda: deque(maxlen=KEPT))
    second: int = 0
    in_second: int = 0
    missed: int = 0


class RefusedRequests:
    """Call `add` on the loop, `lines` from any thread. `is_secret` detects tokens; `hides_addresses` removes `ip` from bodies."""

    def __init__(
        self,
        is_secret: Callable[[str], bool] = lambda text: False,
        clock: Callable[[], float] = time.time,
        hides_addresses: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_secret = is_secret
        self._hides_addresses = hides_addresses
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds = {code: _Kind() for code in Code}
        self._number = int(clock() * 1_000_000)  # greater than the numbers of an earlier process, so readers continue
        self._bodies_until = 0.0

    def add(
        self, why: Refusal, method: bytes, path: bytes, project: str, body: Callable[[], bytes | None] = lambda: None
    ) -> None:
        """Keep a refusal, or count it as missed; `body` is called only while bodies are requested."""
        now = self._clock()
        with self._lock:
            kind = self._kinds[why.code]
            if int(now) != kind.second:
                kind.second, kind.in_second = int(now), 0
            if kind.in_second >= PER_SECOND:
                kind.missed += 1
                return
            kind.in_second += 1
            self._number += 1
            entry = RefusedRequest(
                self._number,
                int(now * 1000),
                why.status,
                why.code,
                _bounded(method.decode("latin-1")),
                self._shown_path(path),
                project or why.project,
                _bounded(why.path),
                _bounded(why.message, MESSAGE_CHARACTERS),
                kind.missed,
                self._shown_body(body() or b"") if now < self._bodies_until else "",
            )
            kind.missed = 0
            kind.entries.append(entry)

    def page(self, query: Mapping[str, str], remote: str) -> bytes:
        """Return the answer to `GET /refused?after=NUMBER&bodies=1` from a client at `remote`.

        Bodies hold personal data, so only a client on this machine gets them.
        """
        after = query.get("after", "0")
        is_local = plain_ip(remote) in ("127.0.0.1", "::1")
        return self.lines(
            int(after) if after.isdigit() and len(after) < 20 else 0, is_local and query.get("bodies") == "1"
        )

    def lines(self, after: int = 0, bodies: bool = False) -> bytes:
        """Return the entries after number `after` as JSON lines, oldest first.

        `bodies` switches the recording of request bodies on for the next BODIES_SECONDS.
        """
        with self._lock:
            if bodies:
                self._bodies_until = self._clock() + BODIES_SECONDS
            found = [entry for kind in self._kinds.values() for entry in kind.entries if entry.number > after]
        found.sort(key=lambda entry: entry.number)
        if not bodies:
            found = [msgspec.structs.replace(entry, body="") for entry in found]
        return msgspec.json.Encoder().encode_lines(found)

    def _shown_path(self, path: bytes) -> str:
        """Return the path with possible keys masked: ids of data streams, tokens, long words with digits."""
        text = unquote_to_bytes(path[: 4 * TEXT_CHARACTERS]).decode(errors="replace")
        for start in ("/ds/", "/v1/projects/"):
            if text.startswith(start):
                return f"{start}***"
        shown = "/".join(["***" if self._is_secret(step) else step for step in text.split("/")])
        return _bounded(_WORD.sub(self._shown_word, shown))

    def _shown_word(self, word: re.Match[str]) -> str:
        return "***" if _LOOKS_LIKE_A_KEY.fullmatch(word[0]) or self._is_secret(word[0]) else word[0]

    def _shown_body(self, body: bytes) -> str:
        """Return the beginning of a body as text, inflated if gzip, with write keys, tokens and ids of data streams masked."""
        if body[:2] == b"\x1f\x8b":
            with contextlib.suppress(zlib.error):
                body = zlib.decompressobj(_GZIP).decompress(body, BODY_CHARACTERS)
        text = _WRITE_KEY.sub(r"\1***", body[: BODY_CHARACTERS + 1].decode(errors="replace"))
        text = _STRING.sub(lambda found: '"***"' if self._is_secret(found[1]) else found[0], text)
        text = _WORD.sub(lambda found: "***" if self._is_secret(found[0]) else found[0], text)
        if self._hides_addresses():
            text = _IP.sub(r"\1***", text)
        return shorten(escape_controls(text, "\n\t"), BODY_CHARACTERS)


def _bounded(text: str, limit: int = TEXT_CHARACTERS) -> str:
    return shorten(escape_controls(text[: limit + 1]), limit)
