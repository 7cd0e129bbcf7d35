"""From records of a deliveries topic to outcomes, one kind of deliverer per kind of sink."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import msgspec
from confluent_kafka import Message
from faust.types import TP

from pipeline.codec.avro import Framing
from pipeline.codec.routed_avro import avro_to_routed
from pipeline.config.models import ConnectionConfig
from pipeline.delivery.attempts import Attempts
from pipeline.destination import Delivered, Files, Http, HttpRequest, Outcome, Rejected, RoutedHit, Settings, Skipped
from pipeline.sinks.files import FilesSink, Format, Row
from pipeline.sinks.http import HttpSink

logger = logging.getLogger("hitrouter.deliver")

_decoder = msgspec.json.Decoder(RoutedHit)
_DISK_PAUSE_SECONDS = 5.0


class Deliverer(Protocol):
    """Delivers a batch: one final outcome per record, by partition and in their order."""

    async def deliver(
        self, records: Mapping[TP, Sequence[Message]], keep_on: Callable[[], None]
    ) -> dict[TP, list[Outcome]]:
        """`keep_on` raises when the batch must be dropped."""

    def forget(self) -> None:
        """The assignment has changed."""

    async def close(self) -> None:
        """The worker ends."""


class ReadHit(NamedTuple):
    """A routed hit, and its bytes as JSON."""

    hit: RoutedHit
    value: bytes


class RoutedHits:
    """Reads the records of a deliveries topic, JSON or Avro; `framing` reads the latter."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing

    def read(self, value: bytes | None) -> ReadHit | Rejected:
        """The hit, or why it can't be read."""
        try:
            json = value or b""
            if json[:1] not in (b"{", b""):
                json = avro_to_routed(json, self._framing)
            return ReadHit(_decoder.decode(json), json)
        except (msgspec.DecodeError, ValueError) as error:
            return Rejected("invalid_routed_hit", str(error))


class HttpDeliverer:
    """For destinations with an http sink."""

    def __init__(
        self, name: str, connection: ConnectionConfig, sink: Http, settings: Settings, hits: RoutedHits
    ) -> None:
        self._name = name
        self._hits = hits
        self._connection = connection
        self._transform = sink.transform
        self._settings = settings
        self._sink: HttpSink | None = None
        self._attempts: Attempts | None = None

    def forget(self) -> None:
        """Keeps nothing."""

    async def close(self) -> None:
        """Close the connections."""
        if self._sink is not None:
            await self._sink.close()

    async def deliver(
        self, records: Mapping[TP, Sequence[Message]], keep_on: Callable[[], None]
    ) -> dict[TP, list[Outcome]]:
        """Send every hit, and wait for those that must be tried again."""
        requests: list[HttpRequest | Skipped] = []
        unreadable: dict[int, Rejected] = {}
        for position, record in enumerate(record for part in records.values() for record in part):
            made = self._request(record.value())
            if isinstance(made, Rejected):
                unreadable[position] = made
                made = Skipped("unreadable")
            requests.append(made)
        outcomes = await self._started().deliver(requests, keep_on)
        for position, rejected in unreadable.items():
            outcomes[position] = rejected
        in_order = iter(outcomes)
        return {tp: [next(in_order) for _ in part] for tp, part in records.items()}

    def _request(self, value: bytes | None) -> HttpRequest | Skipped | Rejected:
        read = self._hits.read(value)
        if isinstance(read, Rejected):
            return read
        try:
            return self._transform(read.hit, read.value, self._settings)
        except Exception as error:
            logger.exception("the transform of %s failed", self._name)
            return Rejected("transform_failed", repr(error))

    def _started(self) -> Attempts:
        if self._attempts is None:
            delivery = self._connection.delivery
            self._sink = HttpSink(delivery.max_in_flight, bool(getattr(self._settings, "allow_private", False)))
            self._attempts = Attempts(
                self._name, self._sink.send, delivery.max_in_flight, delivery.give_up_after, time.monotonic
            )
        return self._attempts


class FilesDeliverer:
    """For destinations with a files sink."""

    def __init__(self, name: str, topic: str, sink: Files, settings: Settings, hits: RoutedHits) -> None:
        self._name = name
        self._hits = hits
        self._sink = FilesSink(Path(sink.folder(settings)), cast(Format, sink.format(settings)), topic)

    def forget(self) -> None:
        """Another worker may have written to the folder."""
        self._sink.forget()

    async def close(self) -> None:
        """Keeps nothing open."""

    async def deliver(
        self, records: Mapping[TP, Sequence[Message]], keep_on: Callable[[], None]
    ) -> dict[TP, list[Outcome]]:
        """Write one file per partition; while the disk refuses, the connection waits."""
        outcomes: dict[TP, list[Outcome]] = {}
        for tp, part in records.items():
            rows: list[Row] = []
            found: list[Outcome] = []
            for record in part:
                read = self._hits.read(record.value())
                if isinstance(read, Rejected):
                    found.append(read)
                else:
                    rows.append(Row(record.offset() or 0, read.value, read.hit))
                    found.append(Delivered())
            while True:
                keep_on()
                try:
                    await asyncio.to_thread(self._sink.write, tp.partition, rows)
                    break
                except OSError as error:
                    logger.error("%s waits: %s; make room or mend the folder", self._name, error)
                    await asyncio.sleep(_DISK_PAUSE_SECONDS)
            outcomes[tp] = found
        return outcomes
