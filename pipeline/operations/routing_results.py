"""Reports where new hits are routed, as soon as the router has decided."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import Consumer, Message, TopicPartition

from pipeline.codec.ledger_entry import decode_ledger_entry
from pipeline.codec.raw_record import RAW_HIT_SCHEMA
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.codec.routed_hit import time_text
from pipeline.config.models import Config
from pipeline.delivery.deliverers import ReadHit, RoutedHits
from pipeline.kafka.client import client_properties
from pipeline.kafka.offsets import spans
from pipeline.kafka.topics import TopicNames
from pipeline.operations.hit_join import HitJoin, RoutingResult
from pipeline.operations.read_topic import framing_of, header_texts
from pipeline.router.routing import Routing
from pipeline.stages.classify import Dead, RawHit, classify_raw

_CHUNK_RECORDS, _CHUNK_SECONDS = 500, 0.2


class RoutingResultReader:
    """Reads the routing results of hits that arrive after its construction.

    It reads hits-raw and all topics that the router writes, from their current ends. The constructor raises
    BrokerUnavailable.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._names = TopicNames(config.kafka.topic_prefix)
        self._connections = {self._names.deliveries(name): name for name in config.connections}
        self._hits = RoutedHits(framing_of(config, ROUTED_HIT_SCHEMA))
        self._raw_framing = framing_of(config, RAW_HIT_SCHEMA)
        self._routing = Routing(config)
        self._join = HitJoin()
        self._reported_omitted = 0
        topics = (self._names.hits_raw, self._names.dead_letters, self._names.ledger, *self._connections)
        starts = [
            TopicPartition(topic, partition, span.end)
            for topic in topics
            for partition, span in spans(config.kafka, topic, committed=True).items()
        ]
        self._partitions = sum(start.topic == self._names.hits_raw for start in starts)
        self._consumer = Consumer(
            client_properties(
                config.kafka,
                group__id="hitrouter-read",  # required by librdkafka; never joined
                enable__auto__commit=False,
                isolation__level="read_committed",
                fetch__wait__max__ms=100,
            )
        )
        self._consumer.assign(starts)

    def read(self) -> tuple[list[RoutingResult], int]:
        """Return the hits with a known result, and how many others were omitted because they arrived too fast.

        Blocks for up to 0.2 s if nothing arrives.
        """
        for record in self._consumer.consume(_CHUNK_RECORDS, _CHUNK_SECONDS):
            if record.error() is None:
                self._read_one(record)
        omitted = self._join.omitted - self._reported_omitted
        self._reported_omitted += omitted
        return list(self._join.take_results(self._clock())), omitted

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _hit(self, record: Message) -> None:
        place = (record.partition() or 0, record.offset() or 0)
        found = classify_raw(
            record.value(),
            record.key(),
            record.headers(),  # type: ignore[arg-type] # a list; the type stub is wrong
            self._names.hits_raw,
            *place,
            self._partitions,
            self._config.projects,
            self._raw_framing,
        )
        at_ms, now = record.timestamp()[1], self._clock()
        if isinstance(found, RawHit):
            decisions = self._routing.route(found, at_ms).decisions
            wanted = frozenset(d.connection for d in decisions if d.reason is None and d.fault is None)
            self._join.add_hit(
                place, time_text(at_ms), found.project, found.hit.event_name, found.hit_id, wanted, now, found.is_public
            )
        elif isinstance(found, Dead):
            self._join.add_hit(place, time_text(at_ms), found.project, "", "", frozenset(), now)

    def _read_one(self, record: Message) -> None:
        topic = record.topic() or ""
        if topic == self._names.hits_raw:
            self._hit(record)
        elif topic in self._connections:
            read = self._hits.read(record.value())
            if isinstance(read, ReadHit):
                hit = read.hit
                self._join.add_delivery(self._connections[topic], hit.projectId, hit.hitId, hit.is_public)
        elif topic == self._names.dead_letters:
            headers = header_texts(record)
            if headers.get("origin-topic") == self._names.hits_raw:
                place = (int(headers.get("origin-partition", "0")), int(headers.get("origin-offset", "-1")))
                self._join.add_dead_letter(
                    place, headers.get("connection", ""), f"{headers['reason']}: {headers['message']}"
                )
        elif topic == self._names.ledger:
            entry = decode_ledger_entry(record.value() or b"")
            if entry.role == "route":
                self._join.set_routed(entry.partition, entry.next_offset)
