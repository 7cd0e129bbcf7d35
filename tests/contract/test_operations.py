"""Dead letters, replay, explain and tail, on a real Kafka with a destination that fails by script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer

from pipeline.codec.dead_letter import DeadLetter
from pipeline.codec.ledger_entry import LedgerEntry, encode_ledger_entry
from pipeline.config.models import Config
from pipeline.development.fault_server import FaultServer, Rule
from pipeline.errors import WorkerMustRestart
from pipeline.kafka.offsets import end_offsets
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.operations import dead_letters
from pipeline.operations.ledger import ConnectionSums, read_ledger
from pipeline.operations.read_topic import header_texts, read_topic
from tests.faults.delivering import start_fault_server
from tests.roles import dead, hit, ids, put, running, wait_until, written

MakeConfig = Callable[..., Config]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made, stop = start_fault_server()
    yield made
    stop()


def hitrouter(config: Config, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = written(config, folder, "cli.yaml")
    command = [sys.executable, "-m", "pipeline", *arguments, "-c", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def sums(config: Config, connection: str) -> ConnectionSums:
    return read_ledger(config).connections[connection]


def settled(sums: ConnectionSums, routed: int) -> bool:
    """Return whether all hits were routed and have an outcome. Uses one reading, since hits can arrive between two."""
    return sums.routed == routed and sums.pending == 0


def webhook(server: FaultServer, **more: Any) -> dict[str, Any]:
    delivery = {"allow_private": True}
    return {"destination": "Webhook", "settings": {"url": server.url}, "delivery": delivery, **more}


def test_poison_hits_become_dead_letters_and_are_replayed_after_the_fix(
    make_config: MakeConfig, tmp_path: Path, server: FaultServer
) -> None:
    server.replace([Rule(contains="poison", status=422)])
    config = make_config({"crm": webhook(server), "all": {"destination": "Kafka"}})
    (tmp_path / "route").mkdir()
    with running("route", config, tmp_path / "route") as route, running("deliver", config, tmp_path) as deliver:
        names = [f"poison-{n}" if n % 20 == 0 else f"good-{n}" for n in range(300)]
        put(config, *(hit(name) for name in names), b"garbage")
        wait_until(lambda: settled(sums(config, "crm"), 300), "all outcomes")
        assert sorted(server.taken) == sorted(name for name in names if name.startswith("good"))
        assert route.ready() == deliver.ready() == (200, "ready\n")
        told = httpx.get(f"{deliver.admin}/metrics").text
        assert 'hitrouter_delivery_outcomes_total{connection="crm",outcome="rejected"} 15.0' in told
        listed = hitrouter(config, tmp_path, "dead-letters", "list")
        assert "15 deliver crm" in listed.stdout and "http_422" in listed.stdout
        assert "1 route" in listed.stdout and "invalid_json" in listed.stdout
        letters = [
            json.loads(line)
            for line in hitrouter(config, tmp_path, "dead-letters", "list", "--json").stdout.splitlines()
        ]
        assert len(letters) == 16
        position = next(letter["position"] for letter in letters if letter["connection"] == "crm")
        shown = hitrouter(config, tmp_path, "dead-letters", "show", position)
        assert "http_422" in shown.stdout and "poison-" in shown.stdout
        told = hitrouter(config, tmp_path, "explain", "poison-20").stdout
        assert "crm: dead" in told and "all: on its topic" in told and "the first with this id" in told

        server.replace([])
        replayed = hitrouter(config, tmp_path, "dead-letters", "replay", "--connection", "crm", "--yes")
        assert "15 to its connection" in replayed.stdout, replayed.stderr
        wait_until(lambda: len(server.taken) == 300, "the poison hits after the fix")
        again = hitrouter(config, tmp_path, "dead-letters", "replay", "--connection", "crm", "--yes")
        assert "no dead letters to replay" in again.stdout
        told = hitrouter(config, tmp_path, "explain", "poison-20").stdout
        assert "crm: delivered" in told and ", replayed)" in told and "?" not in told
        wait_until(lambda: sums(config, "crm").delivered == 300, "the ledger")
        assert max(server.taken.values()) == 1
        ledger = read_ledger(config)
        assert ledger.adds_up and sums(config, "crm").replayed == 15
        assert "crm: delivered" in hitrouter(config, tmp_path, "explain", "poison-20").stdout


def test_dead_letter_contains_the_response_without_secrets(
    make_config: MakeConfig, tmp_path: Path, server: FaultServer
) -> None:
    secret = "Bearer top-secret-1"
    answer = f'{{"error": "no list of this name",\n "you": "{secret}"}}' + " and more" * 100
    server.replace(
        [Rule(contains="poison", status=422, body=answer), Rule(contains="late", status=503, body="closed at 9")]
    )
    settings = {"url": server.url, "headers": {"authorization": secret}}
    delivery = {"allow_private": True, "give_up_after": "1s", "longest_backoff": "1s"}
    config = make_config({"crm": webhook(server, settings=settings, delivery=delivery)})
    (tmp_path / "route").mkdir()
    with running("route", config, tmp_path / "route"), running("deliver", config, tmp_path) as deliver:
        # With different users, no hit waits for the other.
        put(config, hit("poison"), hit("late", event={"name": "E", "user": {"userId": "other"}}))
        letters = wait_until(lambda: len(found := dead(config)) == 2 and found, "both dead letters")
        messages = {json.loads(letter.value())["hitId"]: header_texts(letter)["message"] for letter in letters}
        told = messages["poison"]
        assert told.startswith('the destination answers 422: {"error": "no list of this name",\\n "you": "***"')
        assert len(told) == 500
        assert messages["late"].endswith("the last failure: http_503: closed at 9")
        assert "no list of this name" in hitrouter(config, tmp_path, "explain", "poison").stdout
        assert "closed at 9" in hitrouter(config, tmp_path, "dead-letters", "list").stdout
        assert not any(text in deliver.log.read_text() for text in ("top-secret", "closed at 9", "no list"))


def letters_in(config: Config, count: int) -> None:
    """Write dead letters of the connection a, as a deliver worker does."""
    ensure_topics(config)
    names = TopicNames(config.kafka.topic_prefix)
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    for number in range(count):
        letter = DeadLetter("deliver", "http_422", "no", names.deliveries("a"), 0, number, 0, "a", "shop")
        value = b'{"hitId":"%d"}' % number
        producer.produce(names.dead_letters, value, b"key", partition=0, headers=letter.headers())
    assert producer.flush(30) == 0


def test_later_of_two_replays_fences_the_earlier_one_and_sends_nothing_twice(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_BATCH", 2)
    config = make_config({"a": {"destination": "Kafka"}})
    letters_in(config, 7)
    later: list[Counter[str]] = []

    def begin_another(sent: int) -> None:
        if not later:
            later.append(dead_letters.replay_dead_letters(config))

    with pytest.raises(WorkerMustRestart, match="If another replay is running"):
        dead_letters.replay_dead_letters(config, progress=begin_another)
    assert later == [Counter({"to its connection": 5, "replayed before": 2})]
    assert ids(config, "a") == [str(number) for number in range(7)]


def test_replay_sees_replayed_dead_letters_after_an_open_transaction(make_config: MakeConfig) -> None:
    config = make_config({"a": {"destination": "Kafka"}})
    letters_in(config, 2)
    names = TopicNames(config.kafka.topic_prefix)
    worker = TransactionalProducer(config.kafka, f"{names.prefix}worker")
    worker.initialise()
    worker.begin()
    entry = encode_ledger_entry(LedgerEntry("deliver", names.deliveries("a"), 0, 0, 0, 0, Counter()))
    for partition in end_offsets(config.kafka, names.ledger, False):
        worker.produce(names.ledger, entry, partition=partition)
    wait_until(lambda: all(end_offsets(config.kafka, names.ledger, False).values()), "the worker's entries")
    sent = LedgerEntry(dead_letters.REPLAY, names.dead_letters, 0, 0, 1, 0, Counter())
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    producer.produce(names.ledger, encode_ledger_entry(sent))
    assert producer.flush(30) == 0
    with ThreadPoolExecutor() as pool:
        again = pool.submit(dead_letters.replay_dead_letters, config)
        wait([again], timeout=1)
        worker.commit_alone()
        assert again.result(60) == {"to its connection": 1, "replayed before": 1}
    assert ids(config, "a") == ["1"]


def test_replay_reads_origins_before_its_transaction_and_bounds_its_bytes(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker aborts a transaction after ten seconds, and 500 reads can take longer."""
    config = make_config()
    ensure_topics(config)
    names = TopicNames(config.kafka.topic_prefix)
    put(config, *(hit(str(number)) for number in range(5)))
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    for record in read_topic(config.kafka, names.hits_raw):
        origin = record.topic() or "", record.partition() or 0, record.offset() or 0
        letter = DeadLetter("route", "no", "no", *origin, 0, "", "shop")
        producer.produce(names.dead_letters, record.value(), b"key", partition=0, headers=letter.headers())
    assert producer.flush(30) == 0
    steps: list[str] = []

    def noted(kind: Any, name: str) -> None:
        call = getattr(kind, name)

        def note(*arguments: Any) -> Any:
            steps.append(name)
            return call(*arguments)

        monkeypatch.setattr(kind, name, note)

    noted(TransactionalProducer, "begin")
    noted(TransactionalProducer, "commit_alone")
    noted(dead_letters._OriginReader, "read")
    monkeypatch.setattr(dead_letters, "_BATCH_BYTES", 2 * len(hit("0")))
    assert dead_letters.replay_dead_letters(config) == {"to hits-raw": 5}
    batches = [["read"] * count + ["begin", "commit_alone"] for count in (2, 2, 1)]
    assert steps == [step for batch in batches for step in batch]


def test_misconfigured_connection_is_in_the_ledger_until_it_resumes(
    make_config: MakeConfig, tmp_path: Path, server: FaultServer
) -> None:
    server.replace([Rule(status=401)])
    delivery = {"allow_private": True, "longest_backoff": "1s"}
    config = make_config({"crm": webhook(server, delivery=delivery)})
    (tmp_path / "route").mkdir()
    with running("route", config, tmp_path / "route"), running("deliver", config, tmp_path):
        put(
            config, *(hit(str(number)) for number in range(12))
        )  # the first hit is set aside, as it may be at fault itself
        wait_until(lambda: "crm" in read_ledger(config).paused, "the pause")
        told = hitrouter(config, tmp_path, "ledger")
        assert told.returncode == 0 and "MISCONFIGURED: crm since" in told.stdout and "answers 401" in told.stdout
        server.replace([])
        wait_until(lambda: sums(config, "crm").delivered >= 1, "the hits after the fix")
        ledger = read_ledger(config)
        assert ledger.paused == {} and ledger.adds_up


_OTHER = {"name": "F", "user": {"userId": "u"}}


def test_replay_routes_each_id_once_to_one_connection(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config({"a": {"destination": "Kafka"}, "b": {"destination": "Kafka", "events": ["E"]}})
    with running("route", config, tmp_path):
        put(config, hit("1"), hit("2", integrations={"Webhok": True}), hit("1"), hit("3", event=_OTHER))
        wait_until(lambda: read_ledger(config).hits.received == 4, "four hits")
        nearest = "integrations.Webhok is not a connection or destination; did you mean 'Webhook'?"
        assert nearest in hitrouter(config, tmp_path, "explain", "2").stdout
        assert nearest in " ".join(hitrouter(config, tmp_path, "ledger").stdout.split())
        # The router rekeyed records without a key. The replay sends both, and the router routes each hitId once.
        done = hitrouter(config, tmp_path, "replay", "--connection", "b", "--from", "1h", "--id", "x")
        assert "8 hits sent to the router, only for b" in done.stdout, done.stderr
        wait_until(lambda: sums(config, "b").replayed == 2, "the replay")
        assert (ids(config, "a"), ids(config, "b")) == (["1", "2", "3"], ["1", "1", "2", "2"])
        hitrouter(config, tmp_path, "replay", "--connection", "b", "--from", "1h", "--id", "x")
        wait_until(lambda: read_ledger(config).notes["replay_skipped", "duplicate"] == 13, "the same replay again")
        assert ids(config, "b") == ["1", "1", "2", "2"]
        ledger = read_ledger(config)
        assert ledger.adds_up
        assert (ledger.hits.received, ledger.hits.unique, ledger.connections["b"].unique) == (4, 3, 3)


def test_duplicate_is_conflicting_only_with_other_content(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config({"a": {"destination": "Kafka"}})
    with running("route", config, tmp_path) as route:
        # Records with the same key keep their order.
        put(config, hit("1", sentAt="2026-11-24T10:15:30Z"), hit("1", sentAt="2026-11-24T10:15:31Z"), key=b"u")
        put(config, hit("1", sentAt="2026-11-24T10:15:30Z", event=_OTHER), key=b"u")
        wait_until(lambda: read_ledger(config).hits.received == 3, "three hits")
        hits = read_ledger(config).hits
        assert (hits.unique, hits.duplicates, hits.conflicting) == (1, 2, 1)
        assert read_ledger(config).adds_up and ids(config, "a") == ["1"]
        told = hitrouter(config, tmp_path, "explain", "1").stdout
        assert told.count("a duplicate: counted") == told.count("a duplicate with different content") == 1
        assert "differs from the first hit with their hitId: 1" in " ".join(
            hitrouter(config, tmp_path, "ledger").stdout.split()
        )
        # Readers can see the commit before the worker has counted it.
        counted = 'hitrouter_hits_conflicting_total{project="shop"} 1.0'
        wait_until(lambda: counted in httpx.get(f"{route.admin}/metrics").text, "the metric")


def test_dead_letter_of_the_router_is_replayed_with_its_headers(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config({"a": {"destination": "Kafka"}}, projects={"blog": {}})
    with running("route", config, tmp_path) as route:
        put(config, hit("1"), project="shop")
        wait_until(lambda: len(dead(config)) == 1, "the dead letter of an unknown project")
        route.stop()
    config = config.model_copy(update={"projects": {**config.projects, "shop": config.projects["blog"]}})
    with running("route", config, tmp_path):
        done = hitrouter(config, tmp_path, "dead-letters", "replay", "--reason", "unknown_project", "--yes")
        assert "1 to hits-raw" in done.stdout, done.stderr
        wait_until(lambda: ids(config, "a") == ["1"], "the hit")
        assert read_ledger(config).adds_up


def test_destination_that_fails_at_random_gets_every_hit(
    make_config: MakeConfig, tmp_path: Path, server: FaultServer
) -> None:
    """6.64 % of the requests fail, in four different ways."""
    share = 0.0166
    server.replace(
        [
            Rule(share=share, status=503),
            Rule(share=share, status=429, headers={"retry-after": "0"}),
            Rule(share=share, close=True),
            Rule(share=share, half_body=True),
        ]
    )
    config = make_config({"crm": webhook(server)})
    (tmp_path / "route").mkdir()
    with running("route", config, tmp_path / "route"), running("deliver", config, tmp_path):
        put(config, *(hit(f"hit-{n}", event={"name": "E", "user": {"userId": f"user-{n}"}}) for n in range(400)))
        wait_until(lambda: sums(config, "crm").delivered == 400, "every hit", 150)
        assert len(server.taken) == 400
        assert server.seen.total() > 400, "the script had no effect"
        assert read_ledger(config).adds_up


def test_tail_shows_new_hits(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config({"a": {"destination": "Kafka"}})
    file = written(config, tmp_path, "cli.yaml")
    with running("route", config, tmp_path):
        tails = []
        for more in ((), ("--connection", "a", "--json")):
            command = [
                sys.executable,
                "-m",
                "pipeline",
                "tail",
                "-c",
                str(file),
                "--limit",
                "1",
                "--hit-id",
                "2",
                *more,
            ]
            tails.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        for process in tails:
            assert process.stderr is not None
            assert "waiting" in process.stderr.readline()
        put(config, hit("1"), hit("2"))
        plain, whole = (process.communicate(timeout=60)[0] for process in tails)
    assert "shop" in plain and plain.split()[-1] == "2"
    assert json.loads(whole)["hitId"] == "2"
