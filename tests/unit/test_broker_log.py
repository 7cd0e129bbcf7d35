"""Tests of the embedded broker's log: lines are appended, files are bounded, and a full disk loses only lines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.kafka.embedded.broker import EmbeddedBroker
from pipeline.kafka.embedded.broker_log import BrokerLog


def printed(log: BrokerLog, *lines: bytes) -> None:
    """A broker that prints `lines` and exits."""
    reading, writing = os.pipe()
    log.follow(os.fdopen(reading, "rb"))
    with os.fdopen(writing, "wb") as broker:
        broker.writelines(line + b"\n" for line in lines)
    assert log._thread is not None
    log._thread.join(10)
    assert not log._thread.is_alive()


def test_a_restart_appends(tmp_path: Path) -> None:
    log = BrokerLog(tmp_path / "broker.log")
    printed(log, b"first")
    printed(log, b"second")
    assert re.fullmatch(r"(\S{10} \S{8} (first|second)\n){2}", log.path.read_text())
    assert log.last_lines() == ["second"]
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_the_files_are_bounded(tmp_path: Path) -> None:
    log = BrokerLog(tmp_path / "broker.log", file_bytes=1_000, files=3)
    printed(log, *(b"%04d" % number + b"x" * 95 for number in range(200)))
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"broker.log", "broker.log.1", "broker.log.2"}
    assert max(sizes.values()) <= 1_000
    newest = b"".join((tmp_path / f"broker.log{end}").read_bytes() for end in (".2", ".1", ""))
    numbers = [int(line.split(b" ")[2][:4]) for line in newest.splitlines()]
    assert numbers == list(range(numbers[0], 200)) and len(numbers) >= 20


def test_a_full_disk_does_not_block_the_broker() -> None:
    log = BrokerLog(Path("/dev/full"))
    printed(log, *(b"x" * 1_000 for _ in range(1_000)), b"No space left on device")
    assert log.last_lines(1) == ["No space left on device"]


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    log = BrokerLog(tmp_path / "broker.log", file_bytes=200_000)
    printed(log, b"x" * 500_000)
    assert all(path.stat().st_size <= 200_000 for path in tmp_path.iterdir())


JVM = (
    b"OpenJDK 64-Bit Server VM warning: Options -Xverify:none was deprecated",
    b"[0.004s][warning][cds] the archive cannot be used",
    b"WARNING: Please consider reporting this to the maintainers of class org.apache.kafka.common.utils.ByteBufferUnmapper",
    b"",
    b"WARNING: sun.misc.Unsafe::invokeCleaner will be removed in a future release",
)
BUSY = b"[group-coordinator-event-processor-1] INFO org.apache.kafka.GroupMetadataManager - [GroupId=route] Rebalanced"
ERROR = b"[main] ERROR kafka.Kafka$ - Exiting Kafka due to fatal exception"


@pytest.mark.parametrize(
    ("status", "lines", "said"),
    [
        (-signal.SIGKILL, JVM, "ended (SIGKILL); no reason is logged; see {}"),
        (-signal.SIGKILL, (*JVM, BUSY), "ended (SIGKILL); no reason is logged; see {}"),
        (-signal.SIGABRT, (b"# A fatal error has been detected", b"#"), "(SIGABRT); last lines of {}: # A fatal error has been"),
        (1, (BUSY, ERROR, *JVM), f"(exit code 1); last lines of {{}}: {BUSY.decode()} | {ERROR.decode()}"),
        (1, JVM, "(exit code 1); no reason is logged; see {}"),
    ],
)  # fmt: skip
def test_a_warning_of_the_java_runtime_is_not_shown_as_the_reason_of_an_exit(
    tmp_path: Path, status: int, lines: tuple[bytes, ...], said: str
) -> None:
    broker = EmbeddedBroker("127.0.0.1:9092", tmp_path)
    printed(broker._log, *lines)
    broker.process = subprocess.Popen(["true"])
    broker.process.wait()
    broker.process.returncode = status
    assert said.format(tmp_path / "broker.log") in broker.failure()
