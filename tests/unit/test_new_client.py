"""Tests of the shared check with a new client: one client at a time per process, closed in the background."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.config.models import KafkaConfig
from pipeline.kafka import new_client
from pipeline.kafka.new_client import CLOSING_MOST, new_client_reaches
from tests.roles import wait_until

_PORTS = itertools.count(10_000)


class Kafka:
    """A Kafka that counts its new clients. Their requests block until `is_open` is set, and their destructors until `may_drop`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config = KafkaConfig(bootstrap_servers=f"127.0.0.1:{next(_PORTS)}")
        self.answers = True
        self.made = 0
        self.dropped_by: list[int] = []
        self.is_open, self.may_drop = threading.Event(), threading.Event()
        self.is_open.set()
        self.may_drop.set()
        monkeypatch.setattr(new_client, "AdminClient", lambda properties: Client(self))

    def reaches(self) -> bool:
        return new_client_reaches(self.config)


class Client:
    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        kafka.made += 1

    def list_topics(self, timeout: float) -> None:
        self.kafka.is_open.wait(10)
        if not self.kafka.answers:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT, "Broker transport failure"))

    def __del__(self) -> None:
        """Block like librdkafka's destructor, which waits for threads that resolve a name."""
        self.kafka.may_drop.wait(10)
        self.kafka.dropped_by.append(threading.get_ident())


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kafka]:
    kafka = Kafka(monkeypatch)
    yield kafka
    kafka.is_open.set()
    kafka.may_drop.set()


@pytest.mark.parametrize("answers", [True, False])
def test_fifty_concurrent_callers_share_one_client_and_its_result(kafka: Kafka, answers: bool) -> None:
    kafka.answers = answers
    kafka.is_open.clear()
    with ThreadPoolExecutor(50) as threads:
        asked = [threads.submit(kafka.reaches) for _ in range(50)]
        wait_until(lambda: kafka.made > 0, "the question", 10)
        kafka.is_open.set()
        assert [question.result(10) for question in asked] == [answers] * 50
    assert (kafka.reaches(), kafka.made) == (answers, 1)


def test_an_old_result_is_not_reused(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_client, "FRESH_SECONDS", 0.05)
    assert kafka.reaches()
    kafka.answers = False
    time.sleep(0.06)
    assert (kafka.reaches(), kafka.made) == (False, 2)


def test_no_caller_waits_for_a_client_to_close_and_few_close_at_once(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_client, "FRESH_SECONDS", 0.0)
    kafka.may_drop.clear()
    begun = time.monotonic()
    answers = [kafka.reaches() for _ in range(2 * CLOSING_MOST)]
    assert time.monotonic() - begun < 5
    assert (answers, kafka.made) == ([True] * CLOSING_MOST + [False] * CLOSING_MOST, CLOSING_MOST)
    kafka.may_drop.set()
    wait_until(lambda: len(kafka.dropped_by) == CLOSING_MOST, "the end of the clients", 10)
    assert threading.get_ident() not in kafka.dropped_by
    wait_until(kafka.reaches, "a new client", 10)


def test_a_hanging_check_blocks_other_callers_only_briefly(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_client, "WAIT_SECONDS", 0.05)
    kafka.is_open.clear()
    first = threading.Thread(target=kafka.reaches)
    first.start()
    wait_until(lambda: kafka.made > 0, "the question", 10)
    assert not kafka.reaches() and kafka.made == 1
    kafka.is_open.set()
    first.join(10)
    assert kafka.reaches()
