"""The embedded broker's log: appended, bounded, and a full disk costs lines only."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipeline.kafka.embedded.broker_log import BrokerLog


def printed(log: BrokerLog, *lines: bytes) -> None:
    """A broker that prints `lines` and ends."""
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


def test_the_files_stay_within_their_bound(tmp_path: Path) -> None:
    log = BrokerLog(tmp_path / "broker.log", file_bytes=1_000, files=3)
    printed(log, *(b"%04d" % number + b"x" * 95 for number in range(200)))
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"broker.log", "broker.log.1", "broker.log.2"}
    assert max(sizes.values()) <= 1_000
    newest = b"".join((tmp_path / f"broker.log{end}").read_bytes() for end in (".2", ".1", ""))
    numbers = [int(line.split(b" ")[2][:4]) for line in newest.splitlines()]
    assert numbers == list(range(numbers[0], 200)) and len(numbers) >= 20


def test_a_full_disk_keeps_no_broker_from_printing() -> None:
    log = BrokerLog(Path("/dev/full"))
    printed(log, *(b"x" * 1_000 for _ in range(1_000)), b"No space left on device")
    assert log.last_lines(1) == ["No space left on device"]


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    log = BrokerLog(tmp_path / "broker.log", file_bytes=200_000)
    printed(log, b"x" * 500_000)
    assert all(path.stat().st_size <= 200_000 for path in tmp_path.iterdir())
