"""Tests of the properties, logs and errors that all Kafka clients share."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli import LibrdkafkaFormatter
from pipeline.config import Config
from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.client import RepeatFilter
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.offsets import end_offsets, spans
from pipeline.kafka.topics import ensure_topics, topic_retention_ms
from pipeline.kafka.transport.quiet import QuietConsumer
from pipeline.kafka.transport.run import _Fleet
from pipeline.kafka.watermarks import ClusterReader


@pytest.fixture(autouse=True)
def reset_the_repeat_filter() -> Iterator[None]:
    log = logging.getLogger("pipeline.kafka.client.librdkafka")
    previous, log.filters = log.filters, [RepeatFilter()]
    yield
    log.filters = previous


def test_an_unavailable_kafka_is_logged_once_and_not_ten_times_a_second(caplog: pytest.LogCaptureFixture) -> None:
    servers = f"127.0.0.1:{free_port()}"
    with pytest.raises(
        BrokerUnavailable, match=rf"ledger could not be read from Kafka at {servers}: .* check that it is running"
    ):
        end_offsets(KafkaConfig(bootstrap_servers=servers), "ledger", committed=True, patience_seconds=1.5)
    refused = [record.getMessage() for record in caplog.records if "Connection refused" in record.getMessage()]
    assert len(refused) == 1, refused
    assert servers in refused[0]


def test_a_command_shows_no_raw_line_of_librdkafka(caplog: pytest.LogCaptureFixture) -> None:
    servers = f"127.0.0.1:{free_port()}"
    with pytest.raises(BrokerUnavailable):
        end_offsets(KafkaConfig(bootstrap_servers=servers), "ledger", committed=True, patience_seconds=1.5)
    shown = {LibrdkafkaFormatter().format(record) for record in caplog.records if "refused" in record.getMessage()}
    assert shown == {f"hitrouter: Kafka client: Connect to {servers} failed: Connection refused"}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "FAIL [rdkafka#consumer-1] [thrd:sasl_ssl://[::1]:9093/bootstrap]: sasl_ssl://[::1]:9093/bootstrap: SSL handshake "
            "failed: certificate verify failed (after 5ms in state SSL_HANDSHAKE, 1 identical error(s) suppressed) (and 9 "
            "times more since)",
            "SSL handshake failed: certificate verify failed (and 9 times more since)",
        ),
        ("ERROR [rdkafka#producer-1] [thrd:main]: 1/1 brokers are down", "1/1 brokers are down"),
        ("FAIL [rdkafka#producer-1] [thrd:b:9/2]: b:9/2: Disconnected (after 2ms in state UP)", "Disconnected"),
    ],
)
def test_a_line_of_librdkafka_is_shown_without_its_threads_and_states(line: str, shown: str) -> None:
    record = logging.LogRecord("pipeline.kafka.client.librdkafka", logging.ERROR, "", 0, "%s", (line,), None)
    assert LibrdkafkaFormatter().format(record) == f"hitrouter: Kafka client: {shown}"


def test_only_commands_show_lines_of_librdkafka_in_plain_words() -> None:
    log = (
        "import logging; logging.getLogger('pipeline.kafka.client.librdkafka').error('FAIL [rdkafka#producer-1] gone')"
    )

    def printed(level: str | None, is_role: bool) -> str:
        code = f"from pipeline.cli import _set_up_logging; _set_up_logging({level!r}, {is_role}); {log}"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr

    assert printed(None, is_role=False) == "hitrouter: Kafka client: gone\n"
    for level, is_role in (("INFO", False), (None, True)):
        assert "E pipeline.kafka.client.librdkafka: FAIL [rdkafka#producer-1] gone" in printed(level, is_role)


def test_the_services_of_mode_log_under_a_name_that_the_command_line_silences() -> None:
    for service in (QuietConsumer, _Fleet):
        assert service.logger.name == "mode"


def test_messages_with_other_words_are_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("pipeline.kafka.client.librdkafka")
    log.error("Connect to %s failed", "a:1")
    log.error("Connect to %s failed", "a:2")
    log.error("Connect to %s failed", "b:1")
    assert [record.getMessage() for record in caplog.records] == ["Connect to a:1 failed", "Connect to b:1 failed"]


def test_a_role_without_kafka_names_the_address_in_its_error() -> None:
    servers = f"127.0.0.1:{free_port()}"
    config = Config.model_validate({"kafka": {"bootstrap_servers": servers}, "projects": {"shop": {}}})
    with pytest.raises(BrokerUnavailable, match=f"Kafka at {servers} does not respond"):
        ensure_topics(config, patience_seconds=1.0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts threads as Linux tells them")
def test_an_outage_leaves_no_clients_behind() -> None:
    """A router whose Kafka was away for two hours had 754 threads and 840 MB."""
    kafka = KafkaConfig.model_validate({"bootstrap_servers": "127.0.0.1:1"})

    def threads() -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Threads:")]
        return int(line.split()[1])

    def ask() -> None:
        for question in (
            lambda: topic_retention_ms(kafka, ["t"], 0.2),
            lambda: spans(kafka, "t", committed=True, patience_seconds=0.2),
            lambda: ClusterReader(kafka, 0.2).watermarks(["t"]),
        ):
            with pytest.raises(BrokerUnavailable):
                question()

    thresholds = gc.get_threshold()
    gc.set_threshold(1_000_000, 1_000, 1_000)
    try:
        ask()
        before = threads()
        for _ in range(6):
            ask()
        assert threads() < before + 10
    finally:
        gc.set_threshold(*thresholds)
