"""One request under way: its body as it comes, its hits once it is whole."""

from __future__ import annotations

import logging
import os
import time
import traceback
import zlib
from collections.abc import Callable, Sequence

from pipeline.intake import answers
from pipeline.intake.door import Store
from pipeline.intake.head import Head
from pipeline.stages.accept import Accepted, Refusal, Request

logger = logging.getLogger("hitrouter.intake")

_GZIP = 31  # zlib's window bits for the gzip format


class Exchange:
    """`answer` is known before the body is read where the head suffices; `received_bytes` are those of the body.

    `held_bytes`: of these, what counts against the limit of the door.
    """

    __slots__ = (
        "_answered",
        "_body",
        "_missing",
        "answer",
        "finished",
        "head",
        "held_bytes",
        "keep_alive",
        "project",
        "received_bytes",
        "records",
        "stored",
    )

    def __init__(self, head: Head) -> None:
        self.head = head
        self.answer = head.answer
        self.keep_alive = head.keep_alive
        self.finished = False
        self.received_bytes = self.held_bytes = 0
        self._body: bytes | bytearray = b""
        self.records = 0
        self.project = head.project
        self.stored = True
        """Has everything been stored so far?"""

    def receive(self, part: bytes) -> bool:
        """False: too large, the rest needs no reading.

        Kept as it comes: some hundred bytes of gzip would be half a megabyte, on ten thousand connections.
        """
        self.received_bytes += len(part)
        limit = self.head.body_bytes
        if self.received_bytes > (_most_gzip_bytes(limit) if self.head.gzip else limit):
            self.answer = self.answer or answers.too_large(limit)
            self._body = b""
            return False
        if self.answer is None:
            if not self._body:
                self._body = part
            elif isinstance(self._body, bytearray):
                self._body += part
            else:
                self._body = bytearray(self._body + part)
        return True

    @property
    def body(self) -> bytes:
        """What has been kept of the body: nothing where the head decided, or once the hits are with their store."""
        return bytes(self._body)

    def accept(self) -> Accepted | Sequence[Accepted] | Refusal | bytes:
        """What the whole request is: hits, or its answer."""
        if self.answer is not None:
            return self.answer
        head = self.head
        assert head.endpoint is not None
        body = _inflated(self._body, head.body_bytes) if head.gzip else bytes(self._body)
        if isinstance(body, Refusal):
            return body
        request = Request(
            head.sender,
            head.endpoint.name,
            head.content_type,
            time.time_ns() // 1_000_000,
            head.address,
            head.user_agent,
            head.query,
            head.origin,
        )
        try:
            return head.endpoint.accept(body, request, os.urandom)
        except Exception as error:
            # The text of an exception may hold what nobody may read; its place does not.
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s in %s:%s at a request to %s", type(error).__name__, *place[:2], head.endpoint.name)
            return answers.STUMBLED

    def store(self, records: Sequence[Accepted], store: Store, answered: Callable[[Exchange], None]) -> None:
        """Call `answered` when it is known of all `records` whether they are stored.

        None of their bytes are kept until then: the next request finds their memory warm.
        """
        self._body = b""
        self.records = self._missing = len(records)
        self._answered = answered
        if not records:
            answered(self)
            return
        self.project = records[0].project
        report = self._reported
        for record in records:
            if not store.store(record, report):
                report(False)

    def _reported(self, stored: bool) -> None:
        """Of one record."""
        self.stored &= stored
        self._missing -= 1
        if not self._missing:
            self._answered(self)


def _most_gzip_bytes(limit: int) -> int:
    """As long as gzip makes `limit` bytes that it can't press, with a file's name in its header."""
    return limit + limit // 64 + 1024


def _inflated(body: bytes | bytearray, limit: int) -> bytes | Refusal:
    """Never more than the limit and one byte, whatever the bomb holds; nothing may stand behind the stream."""
    inflate = zlib.decompressobj(_GZIP)
    try:
        text = inflate.decompress(body, limit + 1)
    except zlib.error:
        return answers.BAD_GZIP
    if len(text) > limit:
        return answers.too_large(limit)
    return text if inflate.eof and not inflate.unused_data else answers.BAD_GZIP
