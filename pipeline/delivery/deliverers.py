"""The interface of deliverers and the functions that they share: reading records, transforms, attempts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple, Protocol

import msgspec
from confluent_kafka import Message
from faust.types import TP
from pydantic import ValidationError

from pipeline.codec.avro import Framing
from pipeline.codec.routed_avro import avro_to_routed
from pipeline.config.models import DeliveryConfig
from pipeline.delivery.answers import redacted
from pipeline.delivery.attempts import Attempts
from pipeline.delivery.lanes import Guard, Item
from pipeline.delivery.redaction import Redaction
from pipeline.delivery.refusals import FinalOutcome, Refusals
from pipeline.destination import (
    Delivery,
    Destination,
    Event,
    Http,
    Options,
    Rejected,
    RoutedHit,
    Settings,
    Skipped,
    Verdict,
)
from pipeline.errors import RegistryUnavailable
from pipeline.telemetry.waiting import WAITING, Waiting

logger = logging.getLogger(__name__)

_decoder = msgspec.json.Decoder(RoutedHit)
_REGISTRY_PAUSE_SECONDS = 5.0


class ReadHit(NamedTuple):
    """A routed hit, decoded and as JSON bytes."""

    hit: RoutedHit
    value: bytes


class RoutedHits:
    """Reads the records of a deliveries topic, in JSON or Avro; `framing` reads Avro."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self.may_block = framing.may_block

    def read(self, value: bytes | None) -> ReadHit | Rejected:
        """Return the hit, or a rejection with the reason why it cannot be read."""
        try:
            json = value or b""
            if json[:1] not in (b"{", b""):
                json = avro_to_routed(json, self._framing)
            hit = _decoder.decode(json)
            if not (bytes(hit.event).startswith(b"{") and bytes(hit.context).startswith(b"{")):
                raise ValueError("event and context must be objects")
            if not json.isascii():
                json.decode()  # msgspec does not check UTF-8 in raw parts
            return ReadHit(hit, json)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return Rejected("invalid_routed_hit", str(error))


class Received(NamedTuple):
    """A record and its hit, or the rejection of an unreadable one."""

    record: Message
    read: ReadHit | Rejected


class Deliverer(Protocol):
    """Delivers batches of one connection."""

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[FinalOutcome | None]]:
        """Return the final outcome of each record, by partition and in order. None: not sent, because `guard` found it stale."""

    def reset(self) -> None:
        """Drop state that depends on the assignment of partitions, which has changed."""

    async def close(self) -> None:
        """Release all resources; the app is stopping."""


async def read_records(
    connection: str,
    hits: RoutedHits,
    records: Mapping[TP, Sequence[Message]],
    raise_if_stale: Callable[[], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    reports_pause: bool = True,
) -> dict[TP, list[Received]]:
    """Read a batch. While the schema registry is unavailable, this connection is paused; others continue.

    `reports_pause`: whether the pause is reported as one of `connection`.
    """

    def read() -> dict[TP, list[Received]]:
        return {tp: [Received(record, hits.read(record.value())) for record in part] for tp, part in records.items()}

    is_paused = False
    while True:
        raise_if_stale()
        try:
            received = await asyncio.to_thread(read) if hits.may_block else read()
            break
        except RegistryUnavailable as error:
            logger.error(
                "connection paused: connection=%s state=%s retry_in_seconds=%.1f reason=%s",
                *(connection, "failing", _REGISTRY_PAUSE_SECONDS, error),
            )
            if reports_pause:
                WAITING.begin(connection, Waiting(False, str(error), _REGISTRY_PAUSE_SECONDS))
            is_paused = True
            await sleep(_REGISTRY_PAUSE_SECONDS)
    if is_paused:
        logger.info("connection resumed: connection=%s", connection)
        if reports_pause:
            WAITING.end(connection)
    return received


def record_ages(received: Mapping[TP, Sequence[Received]]) -> Callable[[int], float]:
    """Return a function from a position to the age of its record in seconds."""
    return ages_at([record.timestamp()[1] for part in received.values() for record, _ in part])


def ages_at(times_ms: Sequence[int]) -> Callable[[int], float]:
    """Return a function from a position to the seconds since its time; `times_ms` are Unix milliseconds."""
    return lambda position: time.time() - times_ms[position] / 1000


@cache
def _no_options(kind: type[Options]) -> Options:
    """Return one shared object for all hits without options; it is immutable."""
    return kind()


def event_of(destination: Destination, sink: Http, read: ReadHit, settings: Settings) -> Event | Skipped | Rejected:
    """Return the event of a hit, or its outcome. If the transform raises, only this hit is rejected."""
    raw = bytes(read.hit.options)
    try:
        options = _no_options(destination.options) if raw == b"null" else destination.options.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        return Rejected("invalid_options", f"options.{path}: {first['msg']}")
    delivery = Delivery(read.hit, read.value, settings, options)
    try:
        event = sink.event(delivery)
        if sink.limits.oldest_seconds is not None and isinstance(event, Event):
            event = replace(event, time_ms=delivery.time_ms)
        return event
    except (msgspec.DecodeError, OverflowError) as error:
        # Not logged, because a sender could fill the log: 1e999, an integer of 5,000 digits, or one of 400 digits times a float.
        return Rejected("unreadable_number", f"event or context: {error}")
    except Exception as error:
        logger.exception("transform failed: destination=%s", destination.name)
        return Rejected("transform_failed", repr(error))


def build_attempts(
    name: str,
    delivery: DeliveryConfig,
    redaction: Redaction,
    send: Callable[[Sequence[Item]], Awaitable[Verdict]],
    max_in_flight: int = 1,
    per_second: float | None = None,
    reject: Callable[[Item], Rejected | None] | None = None,
    sets_aside: bool = False,
) -> Attempts[Item]:
    """Return the Attempts that the connection's `delivery` configures; its `rate` overrides `per_second`.

    Secrets are removed here from the outcomes of every sink. With `sets_aside`, an item that is refused alone is set aside.
    """

    async def send_and_redact(items: Sequence[Item]) -> Verdict:
        return redacted(await send(items), redaction)

    return Attempts(
        name,
        send_and_redact,
        max_in_flight,
        delivery.give_up_after,
        time.monotonic,
        per_second=delivery.rate or per_second,
        longest_backoff_seconds=delivery.longest_backoff,
        reject=reject,
        give_up_misconfigured_after_seconds=delivery.give_up_misconfigured_after,
        refusals=Refusals(time.monotonic) if sets_aside else None,
    )


def split_by_partition(
    outcomes: Iterable[FinalOutcome | None], received: Mapping[TP, Sequence[Received]]
) -> dict[TP, list[FinalOutcome | None]]:
    """Return the `outcomes` of all of `received`, given in order, by partition."""
    in_order = iter(outcomes)
    return {tp: [next(in_order) for _ in part] for tp, part in received.items()}
