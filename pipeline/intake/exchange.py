"""One request in flight: collects its body, then stores its hits."""

from __future__ import annotations

import logging
import os
import time
import traceback
import zlib
from collections.abc import Callable, Sequence

from pipeline.intake import answers
from pipeline.intake.admission import Traffic
from pipeline.intake.endpoints import Steps
from pipeline.intake.head import Head
from pipeline.intake.server_state import Store
from pipeline.intake.shares import PART_RECORDS, RECORD_WEIGHT, Waiting
from pipeline.stages.accept import Accepted, Outcome, Refusal, Request

logger = logging.getLogger(__name__)

_GZIP = 31  # zlib's window bits for the gzip format


class Exchange:
    """The state of one request. `answer` is set early if the head decides; `received_bytes` counts the body.

    `held_bytes` is the part that counts against HELD_BYTES. `traffic` is the project's, None until the project is known.
    """

    __slots__ = (
        "_answered",
        "_began",
        "_body",
        "_read_bytes",
        "_record_weight",
        "_rest",
        "_steps",
        "_store",
        "_unreported",
        "_weight",
        "answer",
        "head",
        "held_bytes",
        "keep_alive",
        "project",
        "received_bytes",
        "records",
        "stored",
        "traffic",
    )

    def __init__(self, head: Head) -> None:
        self.head = head
        self.answer = head.answer
        self.keep_alive = head.keep_alive
        self.received_bytes = self.held_bytes = 0
        self._body: bytes | bytearray = b""
        self.records = 0
        self.project = head.project
        self.traffic: Traffic | None = head.traffic
        self._read_bytes = 0
        self._steps: Steps | None = None
        self._began = 0.0  # when the part of a batch in flight went to the store
        self.stored = True
        """Whether all records reported so far are stored."""

    def receive(self, part: bytes) -> bool:
        """Append a part of the body. Return False if the body is too large; the rest need not be read.

        gzip is inflated only once the body is complete: a few hundred bytes can become half a megabyte, on 10,000 connections.
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
        """The body received so far; empty if the head decided, or once the hits went to the store."""
        return bytes(self._body)

    def plain_body(self) -> bytes:
        """Return the inflated body; empty if it is not valid gzip."""
        body = self._inflated()
        return b"" if isinstance(body, Refusal) else body

    def _inflated(self) -> bytes | Refusal:
        return _inflated(self._body, self.head.body_bytes) if self.head.gzip else bytes(self._body)

    def accept(self) -> Accepted | Sequence[Accepted] | Refusal | bytes | None:
        """Return the hits of the complete request, or its answer. None means: a large batch has more steps, call again."""
        if self.answer is not None:
            return self.answer
        try:
            if self._steps is not None:
                return self._step(self._steps)
            head = self.head
            assert head.endpoint is not None
            body = self._inflated()
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
            if head.endpoint.steps is not None:
                self._read_bytes = len(body)
                return self._step(head.endpoint.steps(body, request, os.urandom))
            return head.endpoint.accept(body, request, os.urandom)
        except Exception as error:
            # The exception's text may hold personal data, so only its type and place are logged.
            place = traceback.extract_tb(error.__traceback__)[-1]
            name = "" if self.head.endpoint is None else self.head.endpoint.name
            logger.error(
                "internal error, request refused: endpoint=%s error=%s file=%s line=%d",
                name,
                type(error).__name__,
                *place[:2],
            )
            return answers.INTERNAL_ERROR

    def _step(self, steps: Steps) -> Outcome | None:
        self._steps = steps
        try:
            next(steps)
            while self.traffic is None:  # no project to wait a turn for: run all steps now
                next(steps)
        except StopIteration as end:
            self._steps = None
            outcome: Outcome = end.value
            if isinstance(outcome, Refusal) and self.traffic is not None and self.traffic.limit is not None:
                # Counts inflated bytes: a few bytes of gzip can cost a hundred times more to read.
                self.traffic.limit.take(1, self._read_bytes)
            return outcome
        return None

    def wait_first(self, resume: Waiting) -> None:
        """Wait for the turn of the next step, ahead of other requests of the project."""
        assert self.traffic is not None
        self.traffic.share.wait(self, resume, first=True)

    def cancel_wait(self) -> None:
        """Cancel waiting for a turn."""
        if self.traffic is not None:
            self.traffic.share.cancel(self)

    def store(self, records: Sequence[Accepted], store: Store, answered: Callable[[Exchange], None]) -> None:
        """Store `records`, and call `answered` once the result of all of them is known.

        A large batch goes to `store` in parts, while the project's share has room. The body is freed first, so that the next request
        reuses its memory while it is in the CPU cache.
        """
        self._body = b""
        self.records = count = len(records)
        self._answered = answered
        if not count:
            answered(self)
            return
        self.project = records[0].project
        size = self.head.record_header_bytes * count
        for record in records:
            size += len(record.key) + len(record.value)
        traffic = self.traffic
        assert traffic is not None
        if traffic.limit is not None:
            traffic.limit.take(count, size)
        if count > PART_RECORDS:
            self._store, self._rest = store, records
            self._unreported = self._weight = 0
            self._record_weight = RECORD_WEIGHT + size // count
            self._store_part()
            return
        self._rest = ()
        self._unreported = count
        self._weight = weight = RECORD_WEIGHT * count + size
        traffic.share.begin(weight)
        report = self._reported
        for record in records:
            if not store.store(record, report):
                report(False)

    def _store_part(self, is_late: bool = False) -> int:
        """Store the next part; return its number of records. If `is_late`, give up the rest."""
        traffic = self.traffic
        assert traffic is not None
        if is_late:
            self.stored, self._rest = False, ()
            if not self._unreported:
                self._answered(self)
            return 0
        self._began = traffic.share.shares.clock()
        part, self._rest = self._rest[:PART_RECORDS], self._rest[PART_RECORDS:]
        weight = len(part) * self._record_weight
        self._unreported += len(part)
        self._weight += weight
        traffic.share.begin(weight)
        report = self._reported
        for record in part:
            if not self._store.store(record, report):
                report(False)
        if self._rest:
            traffic.share.wait(self, self._store_part, first=True)
        return len(part)

    def _reported(self, stored: bool) -> None:
        """Handle the result of one record."""
        self.stored &= stored
        self._unreported -= 1
        if self._unreported:
            return
        traffic = self.traffic
        assert traffic is not None
        traffic.share.end(self._weight)
        if self._began:
            traffic.share.shares.adjust(self._began)
        if self._rest:
            self._weight = 0
            if self.stored:
                return  # the next part waits for its turn
            self._rest = ()
            self.cancel_wait()
        self._answered(self)


def _most_gzip_bytes(limit: int) -> int:
    """Return the largest gzip size of `limit` bytes: incompressible data, with a file name in the header."""
    return limit + limit // 64 + 1024


def _inflated(body: bytes | bytearray, limit: int) -> bytes | Refusal:
    """Inflate at most `limit` + 1 bytes, whatever a zip bomb holds; data after the gzip stream is refused."""
    inflate = zlib.decompressobj(_GZIP)
    try:
        text = inflate.decompress(body, limit + 1)
    except zlib.error:
        return answers.BAD_GZIP
    if len(text) > limit:
        return answers.too_large(limit)
    return text if inflate.eof and not inflate.unused_data else answers.BAD_GZIP
