"""Tests of the embedded Kafka under faults."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.errors import BrokerUnavailable
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded import jars as jars_module
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.embedded.jars import fetch_jars, locked_jars
from tests.processes import children_of, is_alive
from tests.roles import wait_until


def assert_keeps_a_topic(broker: EmbeddedBroker, end: Callable[[EmbeddedBroker], None]) -> None:
    """Start Kafka, end it by `end`, and check that it has its data after a second start."""
    broker.start()
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(30)
    end(broker)
    broker.start()
    try:
        topics = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=20).topics
        assert "kept" in topics
    finally:
        broker.stop()


def test_embedded_kafka_keeps_its_data_after_sigkill(tmp_path: Path) -> None:
    assert_keeps_a_topic(EmbeddedBroker(f"127.0.0.1:{free_port()}", tmp_path), EmbeddedBroker.kill)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_embedded_kafka_keeps_its_data_in_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locale: str
) -> None:
    """Kafka splits log.dirs at commas. Java reads properties as Latin-1 with escapes, and paths in the encoding of the locale."""
    monkeypatch.setenv("LC_ALL", locale)
    broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", tmp_path / "caf\u00e9, \u65e5 \\u0041 #=!$(x)' ")
    assert_keeps_a_topic(broker, EmbeddedBroker.stop)
    assert [path.name for path in tmp_path.iterdir()] == [broker.node.data.name]


def test_embedded_kafka_has_private_files_and_a_log_that_survives_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", data)
    broker.start()
    try:
        broker.kill()  # the next start finds an unclean stop, and says so
        before = data.joinpath("broker.log").read_bytes() if data.joinpath("broker.log").exists() else b""
        data.joinpath("broker.log").write_bytes(before + b"of the first start\n")
        broker.start()
        open_to_others = [path for path in [data, *data.rglob("*")] if path.stat().st_mode & 0o077]
        assert [path for path in open_to_others if path.name != "broker.log"] == []
    finally:
        broker.stop()
    first, _, rest = data.joinpath("broker.log").read_text().partition("of the first start\n")
    assert first == before.decode()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in rest.splitlines())


def test_second_start_on_the_same_data_is_a_clear_error(kafka: EmbeddedBroker) -> None:
    with pytest.raises(BrokerUnavailable, match="another embedded Kafka uses"):
        EmbeddedBroker(f"127.0.0.1:{free_port()}", kafka.node.data).start()


def test_error_names_the_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BrokerUnavailable, match=f"cannot listen on {listen}"):
            EmbeddedBroker(listen, tmp_path).start()


def test_embedded_kafka_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "h.yaml").write_text(f"kafka: {{listen: '127.0.0.1:{free_port()}', data: '{tmp_path / 'data'}'}}\n")
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "pipeline", "kafka", "-c", str(tmp_path / "h.yaml")]
        parent = subprocess.Popen(command, stdout=output, stderr=output)
    wait_until(lambda: "kafka ready" in log.read_text(), "ready")
    below = children_of(parent.pid)
    assert children_of(parent.pid, "kafka.Kafka")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(map(is_alive, below)), "the end of the broker")


def test_broken_jar_in_the_cache_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fetch_jars()[0].parent
    repository = tmp_path / "repository"
    for jar in locked_jars():
        (repository / jar.path).parent.mkdir(parents=True, exist_ok=True)
        (repository / jar.path).symlink_to(source / jar.name)
    cache = tmp_path / "cache"
    shutil.copytree(source, cache / "kafka-jars")
    victim = cache / "kafka-jars" / locked_jars()[0].name
    victim.write_bytes(b"broken" + victim.read_bytes()[6:])
    monkeypatch.setenv("HITROUTER_CACHE", str(cache))
    monkeypatch.setenv("HITROUTER_MAVEN_REPOSITORY", repository.as_uri())
    (cache / "kafka-jars" / "kafka-clients-0.1.jar").write_bytes(b"of another version")
    assert fetch_jars() == [cache / "kafka-jars" / jar.name for jar in locked_jars()]
    assert not victim.read_bytes().startswith(b"broken")
    # A repository that holds something else is told apart.
    victim.unlink()
    original = repository / locked_jars()[0].path
    original.unlink()
    original.write_bytes(b"forged")
    monkeypatch.setattr(jars_module, "_ATTEMPTS", 1)
    with pytest.raises(BrokerUnavailable, match="is not the locked file"):
        fetch_jars()
