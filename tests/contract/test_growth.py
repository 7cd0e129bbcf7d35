"""Partitions of hits-raw are added: no id passes twice, no hit is lost, and a replay gives every old hit."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from pipeline.codec.raw_record import REPLAY_ID, partition_of
from pipeline.config.models import Config
from pipeline.errors import TransactionAborted
from pipeline.kafka.offsets import spans
from pipeline.kafka.partitions import assigned_count, partition_count
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.kafka.watermarks import ClusterReader
from pipeline.operations.explain import explain
from pipeline.operations.ledger import read_ledger
from pipeline.operations.read_topic import header_texts, read_topic
from pipeline.operations.replay import replay_hits
from tests.roles import delivered, hit, ids, put, running, wait_until

MakeConfig = Callable[..., Config]
GROWTHS = [pytest.param(4, 8, id="4-8"), pytest.param(3, 5, id="3-5")]


def with_partitions(config: Config, partitions: int) -> Config:
    """`config` with so many partitions to begin with. Workers look for new ones every half second."""
    client = {"topic.metadata.refresh.interval.ms": 500}
    kafka = config.kafka.model_copy(update={"partitions": partitions, "client": client})
    return config.model_copy(update={"kafka": kafka})


def grow(config: Config, partitions: int, *topics: str) -> None:
    """As Kafka's own tool does it: hits-raw, or `topics`."""
    admin = AdminClient({"bootstrap.servers": config.kafka.servers})
    for topic in topics or (TopicNames(config.kafka.topic_prefix).hits_raw,):
        admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(30)

        def grown(topic: str = topic) -> bool:
            return len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == partitions

        wait_until(grown, f"{topic} has {partitions} partitions")


def grow_both(config: Config, partitions: int) -> None:
    names = TopicNames(config.kafka.topic_prefix)
    grow(config, partitions, names.seen_hits, names.hits_raw)


def keyed(config: Config, *names: str, **more: Any) -> None:
    """As the intake writes: each hit under its key, by the number of partitions that a new client sees."""
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    for name in names:
        producer.produce(
            TopicNames(config.kafka.topic_prefix).hits_raw,
            hit(name, **more),
            f"shop/{name}".encode(),
            headers=[("project", b"shop")],
        )
    assert producer.flush(30) == 0


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number:03}" for number in range(count)]


def received(config: Config, count: int) -> Callable[[], bool]:
    return lambda: read_ledger(config).hits.received == count


def twice(config: Config) -> dict[str, int]:
    """Ids that a read_committed reader of connection `a` gets more than once."""
    return {name: count for name, count in Counter(ids(config, "a")).items() if count > 1}


@pytest.mark.parametrize(
    ("before", "after", "file_is_changed"),
    [
        pytest.param(4, 8, True, id="4-8"),
        pytest.param(3, 5, True, id="3-5"),
        pytest.param(3, 5, False, id="3-5-file-as-before"),
    ],
)
def test_a_restarted_worker_knows_the_ids_of_all_old_partitions(
    make_config: MakeConfig, tmp_path: Path, before: int, after: int, file_is_changed: bool
) -> None:
    config = with_partitions(make_config(), before)
    known = numbered("known", 60)
    with running("route", config, tmp_path) as worker:
        keyed(config, *known)
        wait_until(received(config, 60), "the first hits")
        assert worker.stop() == 0
    grow_both(config, after)
    if file_is_changed:
        config = with_partitions(config, after)
    with running("route", config, tmp_path), running("route", config, tmp_path, slot=1):
        keyed(config, *known, *numbered("new", 60))
        wait_until(received(config, 180), "all hits")
        assert twice(config) == {}
        assert len(ids(config, "a")) == 120
        assert read_ledger(config).adds_up


@pytest.mark.parametrize(("before", "after"), GROWTHS)
def test_workers_that_run_through_a_growth_pass_no_id_twice(
    make_config: MakeConfig, tmp_path: Path, before: int, after: int
) -> None:
    config = with_partitions(make_config(), before)
    old = Producer({"bootstrap.servers": config.kafka.servers, "topic.metadata.refresh.interval.ms": 3_600_000})
    hits_raw = TopicNames(config.kafka.topic_prefix).hits_raw
    sent = 0

    def send(names: list[str], producer: Producer) -> None:
        nonlocal sent
        for name in names:
            producer.produce(hits_raw, hit(name), f"shop/{name}".encode(), headers=[("project", b"shop")])
        assert producer.flush(30) == 0
        sent += len(names)

    with ExitStack() as stack:
        workers = [stack.enter_context(running("route", config, tmp_path, slot=slot)) for slot in range(2)]
        send(numbered("before", 60), old)
        wait_until(received(config, 60), "the first hits")
        # seen-hits is grown by the workers.
        grow(config, after)
        new = Producer({"bootstrap.servers": config.kafka.servers})
        rounds = 0

        def all_assigned() -> bool:
            """Goes on sending by both numbers of partitions until the workers have all of them."""
            nonlocal rounds
            rounds += 1
            names = numbered(f"round-{rounds}", 20)
            send([*names, *numbered("before", 60)], new)
            send([*names, *numbered("before", 60)], old)
            return all(worker.logged(f"seen store rebuilt: partitions={after}") for worker in workers)

        wait_until(all_assigned, "an assignment of all partitions")
        send(numbered("after", 60), old)
        send(numbered("after", 60), new)
        wait_until(received(config, sent), "all hits")
        assert twice(config) == {}
        assert len(ids(config, "a")) == 120 + rounds * 20
        assert read_ledger(config).adds_up
        for worker in workers:
            assert worker.stop() == 0


@pytest.mark.parametrize(("before", "after"), GROWTHS)
def test_a_backlog_in_the_old_partitions_passes_once_and_is_replayed_once(
    make_config: MakeConfig, tmp_path: Path, before: int, after: int
) -> None:
    config = with_partitions(make_config(), before)
    known, waiting = numbered("known", 40), numbered("waiting", 40)
    with running("route", config, tmp_path) as worker:
        keyed(config, *known)
        wait_until(received(config, 40), "the first hits")
        assert worker.stop() == 0
    keyed(config, *waiting, *known)
    put(config, hit(None), hit(None))
    put(config, *map(hit, waiting[:10]))  # without a key
    put(config, b"garbage")
    grow(config, after)
    keyed(config, *known, *waiting)
    with running("route", config, tmp_path), running("route", config, tmp_path, slot=1):
        wait_until(received(config, 40 + 80 + 2 + 10 + 1 + 80), "all hits")
        assert twice(config) == {}
        passed = ids(config, "a")
        assert len(passed) == 82 and set(known + waiting) < set(passed)
        replay_hits(config, "a", 0, round(time.time() * 1000) + 60_000, "again")
        wait_until(lambda: len(replayed(config, "again")) >= 82, "the replayed hits")
        wait_until(lambda: routed_all(config), "the rest of the replay")
        assert sorted(replayed(config, "again")) == passed
        assert read_ledger(config).adds_up


def routed_all(config: Config) -> bool:
    """Has the router read all of hits-raw? A record of a transaction is followed by a marker, so the end is not asked."""
    names = TopicNames(config.kafka.topic_prefix)
    group = f"{names.prefix}route"
    committed = ClusterReader(config.kafka).committed({group: names.hits_raw})[group]
    return all(
        committed.get((names.hits_raw, record.partition() or 0), 0) > (record.offset() or 0)
        for record in read_topic(config.kafka, names.hits_raw)
    )


def replayed(config: Config, replay_id: str) -> list[str]:
    """The ids that a replay has brought to connection `a`."""
    topic = TopicNames(config.kafka.topic_prefix).deliveries("a")
    records = [record for record in read_topic(config.kafka, topic) if header_texts(record).get(REPLAY_ID) == replay_id]
    return [json.loads(record.value() or b"")["hitId"] for record in records]


def test_a_replay_after_a_growth_gives_every_old_hit(make_config: MakeConfig, tmp_path: Path) -> None:
    config = with_partitions(make_config(), 4)
    with running("route", config, tmp_path) as worker:
        keyed(config, *numbered("known", 40))
        put(config, *(hit(None) for _ in range(10)))
        wait_until(received(config, 50), "the first hits")
        assert worker.stop() == 0
    passed = ids(config, "a")
    grow_both(config, 8)
    config = with_partitions(config, 8)
    with running("route", config, tmp_path):
        replay_hits(config, "a", 0, round(time.time() * 1000) + 60_000, "again")
        wait_until(lambda: len(replayed(config, "again")) >= 50, "every old hit")
        wait_until(lambda: routed_all(config), "the rest of the replay")
        assert sorted(replayed(config, "again")) == passed


def test_explain_tells_hits_that_stayed_from_those_that_moved(make_config: MakeConfig, tmp_path: Path) -> None:
    config = with_partitions(make_config({"a": {"destination": "Kafka"}}), 4)
    routed, waiting = numbered("routed", 8), numbered("waiting", 8)
    with running("route", config, tmp_path) as worker:
        keyed(config, *routed)
        wait_until(received(config, 8), "the first hits")
        assert worker.stop() == 0
    keyed(config, *waiting)
    grow_both(config, 8)
    config = with_partitions(config, 8)
    (hit_trace,) = explain(config, waiting[0])
    assert [trace.state for trace in hit_trace.connection_traces] == ["not routed yet"]
    with running("route", config, tmp_path):
        wait_until(received(config, 16), "the hits that waited")
        keyed(config, routed[0], waiting[0])
        wait_until(received(config, 18), "the duplicates")
    moves = 0
    for name in (*routed, *waiting):
        (hit_trace,) = explain(config, name)
        notes = [received.note for received in hit_trace.received]
        if notes[0].startswith("rekeyed"):
            notes.pop(0)
            moves += 1
            assert name in waiting
        duplicates = ["a duplicate: counted, not routed"] if name in (routed[0], waiting[0]) else []
        assert notes == ["the first with this id: routed", *duplicates]
        assert [trace.state for trace in hit_trace.connection_traces] == ["on its topic"]
    assert moves > 0


def test_the_header_of_a_rekeyed_record_keeps_none_in_a_wrong_partition(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = with_partitions(make_config(), 4)
    names = numbered("stranger", 20)
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    with running("route", config, tmp_path):
        for name in names:
            key = f"shop/{name}".encode()
            producer.produce(
                TopicNames(config.kafka.topic_prefix).hits_raw,
                hit(name),
                key,
                (partition_of(key, 4) + 1) % 4,
                headers=[("project", b"shop"), ("rekeyed-from", b"hits-raw/0/0")],
            )
        assert producer.flush(30) == 0
        keyed(config, *names)
        wait_until(received(config, 40), "all hits")
        assert twice(config) == {}
        assert len(delivered(config, "a")) == 20


def test_ids_are_known_through_two_growths_with_a_backlog_at_each(make_config: MakeConfig, tmp_path: Path) -> None:
    config = with_partitions(make_config(), 2)
    first, second, third = (numbered(name, 30) for name in ("first", "second", "third"))
    with running("route", config, tmp_path) as worker:
        keyed(config, *first)
        wait_until(received(config, 30), "the first hits")
        assert worker.stop() == 0
    keyed(config, *second, *first)  # a backlog under two partitions
    grow(config, 3)
    with running("route", config, tmp_path) as worker:
        wait_until(received(config, 90), "the backlog")
        assert worker.stop() == 0
    put(config, *map(hit, third))  # a backlog without keys
    keyed(config, *first, *second, *third)
    grow(config, 7)
    with running("route", config, tmp_path), running("route", config, tmp_path, slot=1):
        keyed(config, *first, *second, *third)
        wait_until(received(config, 90 + 30 + 90 + 90), "all hits")
        assert twice(config) == {}
        assert len(ids(config, "a")) == 90
        assert read_ledger(config).adds_up


def test_all_members_of_a_generation_use_the_number_that_the_group_reads(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Not the number that the topic has: one member would already see a growth that another one has not seen."""
    config = with_partitions(make_config(), 4)
    slow = {"topic.metadata.refresh.interval.ms": 600_000}
    config = config.model_copy(update={"kafka": config.kafka.model_copy(update={"client": slow})})
    names = TopicNames(config.kafka.topic_prefix)
    group = f"{names.prefix}route"
    assert assigned_count(config.kafka, group, names.hits_raw) is None
    with running("route", config, tmp_path):
        grow(config, 8)
        assert partition_count(config.kafka, names.hits_raw) == 8
        assert assigned_count(config.kafka, group, names.hits_raw) == 4
        with running("route", config, tmp_path, slot=1):
            wait_until(lambda: assigned_count(config.kafka, group, names.hits_raw) == 8, "the new partitions")


def test_a_transaction_has_its_records_in_kafka_before_it_sends_offsets(make_config: MakeConfig) -> None:
    """Else a worker that sleeps in between adds ids that the next generation has not read."""
    config = with_partitions(make_config(), 1)
    ensure_topics(config)
    topic = TopicNames(config.kafka.topic_prefix).seen_hits
    ends: list[int] = []

    class Watched:
        def __init__(self, producer: Any) -> None:
            self._producer = producer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._producer, name)

        def send_offsets_to_transaction(self, *arguments: Any) -> None:
            ends.append(spans(config.kafka, topic, committed=False)[0].end)
            raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION, "seeded", False, False, True))

    producer = TransactionalProducer(config.kafka, f"{topic}-producer", linger__ms=2_000)
    producer.initialise()
    instance = producer._calls.instance
    instance.producer = Watched(instance.producer)  # type: ignore[assignment]
    producer.begin()
    producer.produce(topic, b"block", partition=0)
    with pytest.raises(TransactionAborted):
        producer.commit([TopicPartition("any", 0, 1)], None)
    assert ends == [1]


def test_new_partitions_that_a_producer_does_not_know_cost_one_abort(make_config: MakeConfig) -> None:
    config = with_partitions(make_config(), 1)
    config = config.model_copy(update={"kafka": config.kafka.model_copy(update={"client": {}})})
    ensure_topics(config)
    topic = TopicNames(config.kafka.topic_prefix).seen_hits
    producer = TransactionalProducer(config.kafka, f"{topic}-producer")
    producer.initialise()
    producer.begin()
    producer.produce(topic, b"block", partition=0)
    producer.commit_alone()
    grow(config, 3, topic)
    producer.begin()
    with pytest.raises(TransactionAborted, match="partition 2"):
        producer.produce(topic, b"block", partition=2)
    producer.abort()
    producer.begin()
    producer.produce(topic, b"block", partition=2)
    producer.commit_alone()
    assert [record.partition() for record in read_topic(config.kafka, topic)] == [0, 2]
