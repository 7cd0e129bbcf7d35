"""Readers that follow topics from the start of a soak, so that retention cannot hide anything from the verdict."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from pipeline.codec.ledger_entry import decode_ledger_entry
from pipeline.codec.set_aside import SetAsideHit
from tests.faults.soak.verdict import Books, Place

_METADATA_SECONDS = 1.0


class Watcher:
    """Reads topics in one thread, committed records only, new partitions included; `take` gets each record."""

    def __init__(self, bootstrap_servers: str, take: dict[str, Callable[[Message], None]]) -> None:
        self._take = take
        self._stopping = threading.Event()
        self._known: set[tuple[str, int]] = set()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "soak-watch",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "log_level": 0,
                "reconnect.backoff.max.ms": 500,
                "fetch.wait.max.ms": 50,
            }
        )
        self.read_at = time.monotonic()
        """When the last record came."""
        self._thread = threading.Thread(target=self._read, name="soak-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _read(self) -> None:
        asked_at = 0.0
        while not self._stopping.is_set():
            if time.monotonic() > asked_at + _METADATA_SECONDS:
                asked_at = time.monotonic()
                with suppress(KafkaException):
                    self._follow_growth()
            for message in self._consumer.consume(1000, 0.1):
                if message.error() is None:
                    self.read_at = time.monotonic()
                    self._take[message.topic() or ""](message)
        self._consumer.close()

    def _follow_growth(self) -> None:
        topics = self._consumer.list_topics(timeout=2).topics
        found = {(topic, number) for topic in self._take if topic in topics for number in topics[topic].partitions}
        new = found - self._known
        if new:
            self._consumer.incremental_assign([TopicPartition(*place, OFFSET_BEGINNING) for place in new])
            self._known |= new


def note_hit(books: Books, topic: str) -> Callable[[Message], None]:
    """Return what notes the place of a hit."""
    places = books.places.setdefault(topic, {})

    def take(message: Message) -> None:
        hit_id = json.loads(message.value() or b"{}").get("hitId", "")
        places.setdefault(hit_id, []).append(Place(message.partition() or 0, message.offset() or 0))

    return take


def note_aside(books: Books) -> Callable[[Message], None]:
    """Return what notes where a hit that was set aside waits."""

    def take(message: Message) -> None:
        hit = SetAsideHit.read(message.headers())  # type: ignore[arg-type] # a list, whatever the stub says
        hit_id = json.loads(message.value() or b"{}").get("hitId", "")
        place = Place(message.partition() or 0, message.offset() or 0)
        books.aside.setdefault((hit.connection if hit else "", hit_id), []).append(place)

    return take


def note_letter(books: Books) -> Callable[[Message], None]:
    """Return what notes a dead letter."""

    def take(message: Message) -> None:
        headers = dict(message.headers() or ())  # type: ignore[arg-type] # a list, whatever the stub says
        hit_id = json.loads(message.value() or b"{}").get("hitId", "")
        books.letters.add(((headers.get("connection") or b"").decode(), hit_id))

    return take


def note_entry(books: Books) -> Callable[[Message], None]:
    """Return what notes a ledger entry."""

    def take(message: Message) -> None:
        books.entries.append(decode_ledger_entry(message.value() or b""))

    return take
