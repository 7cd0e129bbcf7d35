"""Tests of the ClickHouse sink against the real engine."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_connect.driver.httpclient import HttpClient

from pipeline.destination import Delivered, Misconfigured, Rejected, Retry
from pipeline.sinks.clickhouse import ClickHouseSink, Record
from tests.clickhouse import PASSWORD, USER
from tests.clickhouse import ask_clickhouse as ask
from tests.contract.test_postgres import row

_numbers = itertools.count(1)


@pytest.fixture
def database(clickhouse: str) -> str:
    """A new database for each test."""
    name = f"test_{next(_numbers)}"
    ask(clickhouse, f"CREATE DATABASE {name}")
    return name


def sink(url: str, database: str, **more: Any) -> ClickHouseSink:
    return ClickHouseSink(**{"url": url, "user": USER, "password": PASSWORD, "database": database, "table": "hits",
                             "topic": "t", **more})  # fmt: skip


def records(offsets: Sequence[int], partition: int = 0, **more: Any) -> list[Record]:
    return [Record(partition, offset, row(str(offset), **more)) for offset in offsets]


def offsets(url: str, database: str) -> list[int]:
    return [int(found[0]) for found in ask(url, f"SELECT _offset FROM {database}.hits ORDER BY 1")]


def test_repeated_batch_with_other_boundaries_is_stored_once(clickhouse: str, database: str) -> None:
    assert sink(clickhouse, database).write(records(range(5))) == [Delivered()] * 5
    assert sink(clickhouse, database).write(records(range(3, 9))) == [Delivered()] * 6
    assert offsets(clickhouse, database) == list(range(9))
    assert ask(clickhouse, f"SELECT hit_id, event_name, received_at FROM {database}.hits WHERE _offset = 3") == [
        ["3", "E", "2026-11-24 10:15:30.123"]
    ]


def test_recreated_topic_is_not_taken_for_a_repeat(clickhouse: str, database: str) -> None:
    odd = "a'\\\t\n\x00\U0001f600"
    assert sink(clickhouse, database).write([Record(0, 0, row(odd))]) == [Delivered()]
    assert sink(clickhouse, database).write([Record(0, 0, row(odd))]) == [Delivered()]
    (said,) = sink(clickhouse, database).write([Record(0, 0, row("another"))])
    assert isinstance(said, Misconfigured) and "topic was recreated" in said.message
    assert offsets(clickhouse, database) == [0]


@pytest.mark.parametrize("winner", [3, 6], ids=["the other wrote less", "the other wrote more"])
def test_zombie_with_stale_offsets_neither_duplicates_nor_loses_rows(
    clickhouse: str, database: str, winner: int
) -> None:
    zombie = sink(clickhouse, database)
    assert zombie.write(records([0])) == [Delivered()]
    assert sink(clickhouse, database).write(records(range(1, winner))) == [Delivered()] * (winner - 1)
    assert zombie.write(records(range(1, 5))) == [Delivered()] * 4
    assert offsets(clickhouse, database) == list(range(max(5, winner)))


def test_time_out_of_range_is_rejected_and_other_rows_are_stored(clickhouse: str, database: str) -> None:
    batch = [*records([0]), *records([1], receivedAt="0001-01-01T00:00:00.000Z"), *records([2])]
    first, bad, last = sink(clickhouse, database).write(batch)
    assert (first, last) == (Delivered(), Delivered())
    assert isinstance(bad, Rejected)
    assert offsets(clickhouse, database) == [0, 2]


def constrained(url: str, database: str) -> None:
    """Create a table that refuses hits of the user `bad`."""
    assert sink(url, database).write(records([0])) == [Delivered()]
    ask(url, f"ALTER TABLE {database}.hits ADD CONSTRAINT no_bad CHECK user_id != 'bad'")


def test_refused_row_is_isolated_and_other_rows_are_stored(clickhouse: str, database: str) -> None:
    constrained(clickhouse, database)
    batch = [*records(range(1, 6)), *records([6], userId="bad"), *records(range(7, 12)), *records([12], userId="bad")]
    outcomes = sink(clickhouse, database).write(batch)
    refused = [record.offset for record, outcome in zip(batch, outcomes, strict=True) if outcome != Delivered()]
    assert refused == [6, 12]
    for offset in refused:
        outcome = outcomes[offset - 1]
        assert isinstance(outcome, Rejected) and outcome.message.endswith("(code 469), constraint no_bad")
    assert offsets(clickhouse, database) == [*range(6), *range(7, 12)]


def test_next_writer_does_not_take_a_refused_row_for_delivered(clickhouse: str, database: str) -> None:
    constrained(clickhouse, database)
    batch = [*records([1]), *records([2], userId="bad"), *records(range(3, 6))]
    sink(clickhouse, database).write(batch)  # its process is killed before it writes the dead letter
    assert [type(outcome) for outcome in sink(clickhouse, database).write(batch)] == [
        Delivered, Rejected, Delivered, Delivered, Delivered
    ]  # fmt: skip
    ask(clickhouse, f"ALTER TABLE {database}.hits DROP CONSTRAINT no_bad")
    assert sink(clickhouse, database).write([*batch, *records([6])]) == [Delivered()] * 6
    assert offsets(clickhouse, database) == list(range(7))


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("MergeTree ORDER BY hit_id", "MODIFY SETTING"),
        ("MergeTree PARTITION BY project_id ORDER BY hit_id SETTINGS non_replicated_deduplication_window = 9", "PARTITION"),
        ("Memory", "is not a MergeTree table"),
    ],
    ids=["no deduplication window", "partitions split inserts", "not a MergeTree"],
)  # fmt: skip
def test_table_that_cannot_hold_each_record_once_pauses_connection(
    clickhouse: str, database: str, engine: str, says: str
) -> None:
    ask(clickhouse, f"CREATE TABLE {database}.hits (project_id String, hit_id String) ENGINE = {engine}")
    [outcome] = sink(clickhouse, database).write(records([0]))
    assert isinstance(outcome, Misconfigured)
    assert says in outcome.message
    assert ask(clickhouse, f"SELECT count() FROM {database}.hits") == [["0"]]


def test_deleted_rows_are_not_reported_as_delivered(clickhouse: str, database: str) -> None:
    assert sink(clickhouse, database).write(records([0, 1])) == [Delivered()] * 2
    ask(clickhouse, f"ALTER TABLE {database}.hits DELETE WHERE 1 SETTINGS mutations_sync = 1")
    assert [type(outcome) for outcome in sink(clickhouse, database).write(records([0, 1]))] == [Retry, Retry]
    assert offsets(clickhouse, database) == []


def test_table_of_older_version_gets_missing_columns(clickhouse: str, database: str) -> None:
    ask(clickhouse, f"CREATE TABLE {database}.hits (project_id String, hit_id String, mine Int32) ENGINE = MergeTree "
        "ORDER BY hit_id SETTINGS non_replicated_deduplication_window = 100")  # fmt: skip
    ask(clickhouse, f"INSERT INTO {database}.hits VALUES ('shop', 'old', 7)")
    assert sink(clickhouse, database).write(records([5])) == [Delivered()]
    assert ask(clickhouse, f"SELECT hit_id, mine, event = '' FROM {database}.hits ORDER BY 1") == [
        ["5", "0", "0"], ["old", "7", "1"]
    ]  # fmt: skip


def test_wrong_credentials_are_misconfigured_and_unreachable_server_is_retried(clickhouse: str, database: str) -> None:
    assert isinstance(sink(clickhouse, database, password="wrong").write(records([0]))[0], Misconfigured)
    assert isinstance(sink(clickhouse, "nosuch").write(records([0]))[0], Misconfigured)
    assert isinstance(sink("http://127.0.0.1:1", database).write(records([0]))[0], Retry)


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The refused statements of a user with INSERT and SELECT only, simulated because the packaged engine has no privileges."""
    refused: list[str] = []
    command = HttpClient.command

    def restricted(self: HttpClient, cmd: str, *args: Any, **more: Any) -> Any:
        if cmd.startswith(("CREATE", "ALTER")):
            refused.append(cmd)
            raise DatabaseError("Not enough privileges", code=497, name="ACCESS_DENIED")
        return command(self, cmd, *args, **more)

    monkeypatch.setattr(HttpClient, "command", restricted)
    return refused


def test_complete_table_needs_only_insert_and_select(clickhouse: str, database: str, changes: list[str]) -> None:
    [before] = sink(clickhouse, database).write(records([0]))
    assert isinstance(before, Misconfigured) and "CREATE TABLE IF NOT EXISTS" in before.message
    ask(clickhouse, changes.pop())
    assert sink(clickhouse, database).write(records([0])) == [Delivered()]
    assert changes == []
    ask(clickhouse, f"ALTER TABLE {database}.hits DROP COLUMN options")
    [after] = sink(clickhouse, database).write(records([1]))
    assert isinstance(after, Misconfigured) and after.message.endswith(
        f"ALTER TABLE `{database}`.`hits` ADD COLUMN IF NOT EXISTS `options` Nullable(String)"
    )


def test_log_lines_hold_no_value_of_a_row(
    clickhouse: str, database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise DatabaseError("Cannot do it with 'secret' (while processing row 1)", code=49, name="LOGICAL_ERROR")

    monkeypatch.setattr(ClickHouseSink, "_insert", refuse)
    caplog.set_level(logging.DEBUG)
    assert sink(clickhouse, database).write(records([0])) == [Retry("LOGICAL_ERROR 49")]
    assert "secret" not in caplog.text
