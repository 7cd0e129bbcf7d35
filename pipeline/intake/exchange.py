"""One request under way: its body as it comes, its hits once it is whole."""

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

logger = logging.getLogger("hitrouter.intake")

_GZIP = 31  # zlib's window bits for the gzip format


class Exchange:
    """`answer` is known before the body is read where the head suffices; `received_bytes` are those of the body.

    `held_bytes`: of these, what counts against the limit of the door. `traffic`: that of its project, once it is known.
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
        "finished",
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
        self.finished = False
        self.received_bytes = self.held_bytes = 0
        self._body: bytes | bytearray = b""
        self.records = 0
        self.project = head.project
        self.traffic: Traffic | None = head.traffic
        self._read_bytes = 0
        self._steps: Steps | None = None
        self._began = 0.0  # the part of a batch that is under way
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

    def plain_body(self) -> bytes:
        """The whole body without its gzip; empty where it can't be read."""
        body = self._inflated()
        return b"" if isinstance(body, Refusal) else body

    def _inflated(self) -> bytes | Refusal:
        return _inflated(self._body, self.head.body_bytes) if self.head.gzip else bytes(self._body)

    def accept(self) -> Accepted | Sequence[Accepted] | Refusal | bytes | None:
        """What the whole request is: hits, or its answer. None for a large batch until its last step: call it again."""
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
            # The text of an exception may hold what nobody may read; its place does not.
            place = traceback.extract_tb(error.__traceback__)[-1]
            name = "" if self.head.endpoint is None else self.head.endpoint.name
            logger.error("%s in %s:%s at a request to %s", type(error).__name__, *place[:2], name)
            return answers.INTERNAL_ERROR

    def _step(self, steps: Steps) -> Outcome | None:
        self._steps = steps
        try:
            next(steps)
            while self.traffic is None:  # no project whose turn it could be
                next(steps)
        except StopIteration as end:
            self._steps = None
            outcome: Outcome = end.value
            if isinstance(outcome, Refusal) and self.traffic is not None and self.traffic.limit is not None:
                # A few bytes of gzip may have cost a hundred times more to read.
                self.traffic.limit.take(1, self._read_bytes)
            return outcome
        return None

    def wait_first(self, go_on: Waiting) -> None:
        """Take the next step before other requests of the project."""
        assert self.traffic is not None
        self.traffic.share.wait(self, go_on, first=True)

    def forget(self) -> None:
        """Wait for no turn any longer."""
        if self.traffic is not None:
            self.traffic.share.forget(self)

    def store(self, records: Sequence[Accepted], store: Store, answered: Callable[[Exchange], None]) -> None:
        """Call `answered` when it is known of all `records` whether they are stored.

        A large batch goes to `store` part by part, while the share of its project has room. None of the bytes of a body are kept
        until then: the next request finds their memory warm.
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
        """Return how many records went to the store. When it `is_late` the rest is given up."""
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
        """Of one record."""
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
            self.forget()
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
