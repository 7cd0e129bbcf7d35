"""From records of a deliveries topic to outcomes: what every deliverer needs."""

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
from pipeline.redaction import Redaction
from pipeline.telemetry.waiting import WAITING, Waiting

logger = logging.getLogger("hitrouter.deliver")

_decoder = msgspec.json.Decoder(RoutedHit)
_REGISTRY_PAUSE_SECONDS = 5.0


class ReadHit(NamedTuple):
    """A routed hit, and its bytes as JSON."""

    hit: RoutedHit
    value: bytes


class RoutedHits:
    """Reads the records of a deliveries topic, JSON or Avro; `framing` reads the latter."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self.may_block = framing.may_block

    def read(self, value: bytes | None) -> ReadHit | Rejected:
        """The hit, or why it can't be read."""
        try:
            json = value or b""
            if json[:1] not in (b"{", b""):
                json = avro_to_routed(json, self._framing)
            hit = _decoder.decode(json)
            if not (bytes(hit.event).startswith(b"{") and bytes(hit.context).startswith(b"{")):
                raise ValueError("event and context are objects")
            if not json.isascii():
                json.decode()  # msgspec skips raw parts without a look
            return ReadHit(hit, json)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return Rejected("invalid_routed_hit", str(error))


class Received(NamedTuple):
    """A record and what it holds."""

    record: Message
    read: ReadHit | Rejected


class Deliverer(Protocol):
    """Delivers a batch: the final outcome of each record, by partition and in their order."""

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[FinalOutcome | None]]:
        """Send every hit; None stands for one that `guard` has kept from being sent."""

    def forget(self) -> None:
        """The assignment has changed."""

    async def close(self) -> None:
        """The worker ends."""


async def received_of(
    connection: str,
    hits: RoutedHits,
    records: Mapping[TP, Sequence[Message]],
    raise_if_stale: Callable[[], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    is_shown: bool = True,
) -> dict[TP, list[Received]]:
    """Read a batch. While the registry of schemas does not answer this connection waits, and no other.

    Its wait `is_shown` as that of a connection.
    """

    def read() -> dict[TP, list[Received]]:
        return {tp: [Received(record, hits.read(record.value())) for record in part] for tp, part in records.items()}

    waits = False
    while True:
        raise_if_stale()
        try:
            received = await asyncio.to_thread(read) if hits.may_block else read()
            break
        except RegistryUnavailable as error:
            line = "connection paused: connection=%s state=failing retry_in_seconds=%.1f reason=%s"
            logger.error(line, connection, _REGISTRY_PAUSE_SECONDS, error)
            if is_shown:
                WAITING.begin(connection, Waiting(False, str(error), _REGISTRY_PAUSE_SECONDS))
            waits = True
            await sleep(_REGISTRY_PAUSE_SECONDS)
    if waits:
        logger.info("connection resumed: connection=%s", connection)
        if is_shown:
            WAITING.end(connection)
    return received


def ages_of(received: Mapping[TP, Sequence[Received]]) -> Callable[[int], float]:
    """How long the record at a position has been on the topic, in seconds."""
    return ages_since([record.timestamp()[1] for part in received.values() for record, _ in part])


def ages_since(times_ms: Sequence[int]) -> Callable[[int], float]:
    """How long ago the time at a position was, in seconds; times are in ms since 1970."""
    return lambda position: time.time() - times_ms[position] / 1000


@cache
def _no_options(kind: type[Options]) -> Options:
    """One for all hits without options: they can't be changed."""
    return kind()


def event_of(destination: Destination, sink: Http, read: ReadHit, settings: Settings) -> Event | Skipped | Rejected:
    """What the hit becomes; a transform that raises costs this hit only."""
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
        # Not worth a line in the log, which a sender could fill: 1e999, an integer of 5,000 digits, or one of 400 times a float.
        return Rejected("unreadable_number", f"event or context: {error}")
    except Exception as error:
        logger.exception("the transform of %s failed", destination.name)
        return Rejected("transform_failed", repr(error))


def attempts_of(
    name: str,
    delivery: DeliveryConfig,
    redaction: Redaction,
    send: Callable[[Sequence[Item]], Awaitable[Verdict]],
    max_in_flight: int = 1,
    per_second: float | None = None,
    refused: Callable[[Item], Rejected | None] | None = None,
    sets_aside: bool = False,
) -> Attempts[Item]:
    """Return attempts as the connection's `delivery` declares them; its own rate replaces `per_second`.

    The outcomes of every sink pass `redaction` here. With `sets_aside` an item that alone is answered Misconfigured is set aside.
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
        refused=refused,
        give_up_misconfigured_after_seconds=delivery.give_up_misconfigured_after,
        refusals=Refusals(time.monotonic) if sets_aside else None,
    )


def by_partition(
    outcomes: Iterable[FinalOutcome | None], received: Mapping[TP, Sequence[Received]]
) -> dict[TP, list[FinalOutcome | None]]:
    """`outcomes` of all of `received`, in their order, as a deliverer returns them."""
    in_order = iter(outcomes)
    return {tp: [next(in_order) for _ in part] for tp, part in received.items()}
