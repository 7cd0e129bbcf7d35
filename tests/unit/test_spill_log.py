"""The spill log: confirmed records survive crashes and damage of the file."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.intake.spill import SpillFull, SpillLog, left_behind
from pipeline.intake.spill import log as log_module

MIB = 1024 * 1024


def everything(log: SpillLog) -> list[bytes]:
    log.seal()
    values: list[bytes] = []
    while (path := log.oldest()) is not None:
        values += log.read(path)
        log.remove(path)
    return values


def reopened(log: SpillLog, folder: Path) -> SpillLog:
    log.close()
    return SpillLog(folder, MIB)


def _broken(_: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_what_was_appended_is_read_in_order_and_removed(tmp_path: Path) -> None:
    log = SpillLog(tmp_path, MIB)
    log.append([b"one", b"two"])
    log.append([b"", b"three"])
    assert log.oldest() is None  # still written to
    assert everything(log) == [b"one", b"two", b"", b"three"]
    assert (log.size, list(tmp_path.glob("*.spill"))) == (0, [])


def test_the_next_instance_finds_the_records_and_continues_the_sequence(tmp_path: Path) -> None:
    log = SpillLog(tmp_path, MIB)
    log.append([b"first life"])
    log = reopened(log, tmp_path)
    log.append([b"second life"])
    assert len(list(tmp_path.glob("*.spill"))) == 2
    assert everything(log) == [b"first life", b"second life"]


@pytest.mark.parametrize("cut", [1, 5, 16, 20])
def test_a_torn_tail_is_cut_and_reported(tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    log = SpillLog(tmp_path, MIB)
    log.append([b"whole", b"torn"])
    log.close()
    (path,) = tmp_path.glob("*.spill")
    os.truncate(path, path.stat().st_size - cut)
    with caplog.at_level(logging.WARNING):
        log = SpillLog(tmp_path, MIB)
    assert ("incomplete end of a segment removed" in caplog.text) == (cut != 20)  # 20 bytes are the whole record
    assert everything(log) == [b"whole"]


def test_a_flipped_bit_loses_one_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = [b"one", b"", b"three" * 9, b"four", b"the last"]
    log = SpillLog(tmp_path / "whole", MIB)
    log.append([b"before"])  # so that the numbers do not begin at 1
    log.seal()
    log.append(values)
    log.close()
    *_, path = sorted((tmp_path / "whole").glob("*.spill"))
    whole = path.read_bytes()
    ends = [sum(16 + len(value) for value in values[: number + 1]) for number in range(len(values))]
    for at in range(len(whole)):
        folder = tmp_path / str(at)
        folder.mkdir()
        damaged = whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]
        (folder / path.name).write_bytes(damaged)
        hit = sum(at >= end for end in ends)
        caplog.clear()
        assert everything(SpillLog(folder, MIB)) == values[:hit] + values[hit + 1 :], at
        if hit < len(values) - 1:
            (kept,) = folder.glob("*.damaged-*")
            assert kept.read_bytes() == damaged[ends[hit] - 16 - len(values[hit]) : ends[hit]]
            assert str(kept) in caplog.text
        else:
            assert "incomplete end of a segment removed" in caplog.text


@pytest.mark.parametrize("damage", [bytes(70_000), b"\xff" * 70_000], ids=["zeros", "ones"])
@pytest.mark.parametrize("at", [0, 60_000])
def test_damage_of_any_length_loses_only_the_damaged_records(tmp_path: Path, at: int, damage: bytes) -> None:
    """A thousand confirmed hits follow the damage."""
    log = SpillLog(tmp_path, 2 * MIB)
    log.append([b""] * 70_000)  # so that the numbers have three bytes
    assert len(everything(log)) == 70_000
    values = [b"%d" % number + b"v" * 100 for number in range(1_500)]
    for start in range(0, len(values), 100):
        log.append(values[start : start + 100])
    log.close()
    (path,) = tmp_path.glob("*.spill")
    data = path.read_bytes()
    path.write_bytes(data[:at] + damage + data[at + len(damage) :])
    starts = [sum(16 + len(value) for value in values[:number]) for number in range(len(values))]
    assert everything(SpillLog(tmp_path, MIB)) == [
        value
        for start, value in zip(starts, values, strict=True)
        if start + 16 + len(value) <= at or start >= at + len(damage)
    ]


def test_damage_after_the_start_is_kept_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = SpillLog(tmp_path, MIB)
    log.append([b"one", b"two", b"three"])
    (path,) = tmp_path.glob("*.spill")
    path.write_bytes(path.read_bytes().replace(b"two", b"tw0"))
    assert everything(log) == [b"one", b"three"]
    (kept,) = tmp_path.glob("*.damaged-*")
    assert kept.stat().st_mode & 0o077 == 0
    assert kept.read_bytes().endswith(b"tw0")
    assert str(kept) in caplog.text


def test_damage_that_cannot_be_kept_does_not_block_the_other_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = SpillLog(tmp_path, MIB)
    log.append([b"one", b"two", b"three"])
    log.close()
    (path,) = tmp_path.glob("*.spill")
    path.write_bytes(path.read_bytes().replace(b"two", b"tw0"))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_module, "write_private", full)
    assert everything(SpillLog(tmp_path, MIB)) == [b"one", b"three"]
    assert "damaged bytes lost" in caplog.text
    assert "No space left" in caplog.text


def test_segments_are_of_limited_size(tmp_path: Path) -> None:
    log = SpillLog(tmp_path, MIB, segment_bytes=100)
    for number in range(10):
        log.append([b"%d" % number * 60])
    assert len(list(tmp_path.glob("*.spill"))) == 5
    assert len(everything(log)) == 10


def test_a_full_log_accepts_nothing(tmp_path: Path) -> None:
    log = SpillLog(tmp_path, 1000)
    log.append([b"x" * 900])
    with pytest.raises(SpillFull, match="1000 are allowed"):
        log.append([b"x" * 100])
    assert everything(log) == [b"x" * 900]
    log.append([b"room again"])


def test_a_segment_is_not_written_after_a_failed_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SpillLog(tmp_path, MIB)
    log.append([b"confirmed"])
    (first,) = tmp_path.glob("*.spill")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _broken)
        with pytest.raises(OSError, match="Input/output"):
            log.append([b"unknown"])
    size = first.stat().st_size
    log.append([b"elsewhere"])
    assert first.stat().st_size == size
    values = everything(log)
    assert values[0] == b"confirmed"
    assert values[-1] == b"elsewhere"


def test_a_folder_is_locked_by_one_process(tmp_path: Path) -> None:
    log = SpillLog(tmp_path, MIB)
    with pytest.raises(ConfigurationError, match="another intake spills there"):
        SpillLog(tmp_path, MIB)
    log.close()
    SpillLog(tmp_path, MIB).close()


def test_a_segment_without_an_intact_record_keeps_its_name(tmp_path: Path) -> None:
    log = SpillLog(tmp_path, MIB)
    log.append([b"torn"])
    (path,) = tmp_path.glob("*.spill")
    os.truncate(path, 3)
    log = reopened(log, tmp_path)
    log.append([b"of another name"])
    assert everything(log) == [b"of another name"]


def test_a_segment_whose_name_may_be_lost_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SpillLog(tmp_path, MIB)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _broken)
        with pytest.raises(OSError, match="Input/output"):
            log.append([b"unknown"])  # at the folder
    assert list(tmp_path.glob("*.spill")) == []
    log.append([b"confirmed"])
    assert everything(log) == [b"confirmed"]


def test_an_unreadable_segment_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SpillLog(tmp_path, MIB)
    log.append([b"of another user"])

    def denied(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ConfigurationError, match=r"\.spill: Permission denied; let this user write there"):
        reopened(log, tmp_path)


def test_hits_of_a_removed_slot_are_found(tmp_path: Path) -> None:
    logs = [SpillLog(tmp_path / str(slot), MIB) for slot in range(4)]
    for log in logs[1:]:
        log.append([b"waits"])
    for log in logs[:3]:
        log.close()
    assert left_behind(tmp_path, range(2)) == [tmp_path / "2"]  # 3 is at work
    assert left_behind(tmp_path, ()) == [tmp_path / "1", tmp_path / "2"]
    assert left_behind(tmp_path / "nowhere", ()) == []


def test_attempts_on_a_full_disk_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SpillLog(tmp_path, MIB)
    log.append([b"confirmed"])

    def full(file: int, data: memoryview) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:-9])

    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(5):
            with pytest.raises(OSError, match="No space"):
                log.append([b"unknown"])
    assert len(list(tmp_path.glob("*.spill"))) == 1
    log.append([b"room again"])
    assert everything(log) == [b"confirmed", b"room again"]
