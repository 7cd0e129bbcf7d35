"""Tests of the PostgreSQL sink against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.config.models import Config
from pipeline.delivery.deliverers import ReadHit
from pipeline.destination import Delivered, Misconfigured, Rejected, Retry
from pipeline.operations.ledger import read_ledger
from pipeline.sinks.postgres import PostgresSink
from pipeline.sinks.table_row import Row, row_of
from tests.postgres import new_database
from tests.roles import dead, hit, put, running, wait_until
from tests.unit.test_delivery import _HITS

pytestmark = pytest.mark.anyio

MakeConfig = Callable[..., Config]
_numbers = itertools.count(1)


@pytest.fixture
def dsn(postgres: Any) -> str:
    """A new database for each test."""
    return new_database(postgres, f"test_{next(_numbers)}")


def ask(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type] # fixed queries


def row(hit_id: str, event: str = '{"name":"E","user":{"userId":"u"}}', **more: Any) -> Row:
    value = {"hitId": hit_id, "projectId": "shop", "receivedAt": "2026-11-24T10:15:30.123Z", "userId": "u", **more}
    text = json.dumps({**value, "sentAt": value["receivedAt"], "context": {}})[:-1] + f',"event":{event}}}'
    read = _HITS.read(text.encode())
    assert isinstance(read, ReadHit), read
    return row_of(read.hit)


async def test_repeated_batch_is_stored_once(dsn: str) -> None:
    sink = PostgresSink(dsn, "hits")
    assert await sink.write([row("1"), row("2"), row("1")]) == Delivered()
    assert await sink.write([row("2"), row("3")]) == Delivered()
    await sink.close()
    assert ask(dsn, "SELECT hit_id, event_name, event->'user'->>'userId', received_at::text FROM hits ORDER BY 1") == [
        (number, "E", "u", ask(dsn, "SELECT '2026-11-24T10:15:30.123Z'::timestamptz::text")[0][0]) for number in "123"
    ]


@pytest.mark.parametrize(
    "bad",
    [{"userId": "a\x00b"}, {"event": '{"name":"\\u0000"}'}],
    ids=["a NUL in a text", "a NUL in jsonb"],
)
async def test_unstorable_hit_is_rejected_and_connection_continues(dsn: str, bad: dict[str, Any]) -> None:
    sink = PostgresSink(dsn, "hits")
    verdict = await sink.write([row("1"), row("2", **bad)])
    assert isinstance(verdict, Rejected)
    assert await sink.write([row("1")]) == Delivered()
    await sink.close()
    assert ask(dsn, "SELECT count(*) FROM hits") == [(1,)]


async def test_table_of_older_version_gets_missing_columns(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "CREATE TABLE hits (project_id text, hit_id text, mine int, received_at timestamptz, PRIMARY KEY (project_id, hit_id))"
        )
        connection.execute("INSERT INTO hits VALUES ('shop', 'old', 7, now())")
    sink = PostgresSink(dsn, "hits")
    assert await sink.write([row("1")]) == Delivered()
    await sink.close()
    assert ask(dsn, "SELECT hit_id, mine, event IS NULL FROM hits ORDER BY 1") == [
        ("1", None, False),
        ("old", 7, True),
    ]


async def test_wrong_table_is_misconfigured_and_unreachable_server_is_retried(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE VIEW hits AS SELECT 1 AS one")
    sink = PostgresSink(dsn, "hits")
    assert isinstance(await sink.write([row("1")]), Misconfigured)
    away = await PostgresSink("postgresql://127.0.0.1:1/x", "hits").write([row("1")])
    assert away == Retry("OperationalError: Connection refused")
    assert isinstance(await PostgresSink(dsn, "nosuch.hits").write([row("1")]), Misconfigured)


async def test_invalid_dsn_is_misconfigured_and_not_shown(dsn: str) -> None:
    known = psycopg.conninfo.conninfo_to_dict(dsn)
    for wrong in (
        psycopg.conninfo.make_conninfo(**{**known, "dbname": "nosuch"}),
        psycopg.conninfo.make_conninfo(**{**known, "user": "nobody"}),
        "postgresql://u:s3cret@h:port/x",
        "host=h password:s3cret",
    ):
        verdict = await PostgresSink(wrong, "hits").write([row("1")])
        assert isinstance(verdict, Misconfigured) and "s3cret" not in verdict.message


async def test_row_refused_by_a_trigger_is_rejected_without_its_text(dsn: str) -> None:
    sink = PostgresSink(dsn, "hits")
    assert await sink.write([row("1")]) == Delivered()
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'not %', new.event; END $$; "
            "CREATE TRIGGER refuse BEFORE INSERT ON hits FOR EACH ROW WHEN (new.hit_id = '2') EXECUTE FUNCTION refuse()"
        )
    verdict = await sink.write([row("2", '{"mail":"a@b.example"}')])
    assert isinstance(verdict, Rejected) and "a@b" not in verdict.message
    assert await sink.write([row("3")]) == Delivered()
    await sink.close()


_PRICE = "ALTER TABLE hits ADD COLUMN price numeric GENERATED ALWAYS AS ((event->>'price')::numeric) STORED"
_RAISE = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'not %%', new.event->>'price' USING ERRCODE = '%s'; END $$; "
    "CREATE TRIGGER refuse BEFORE INSERT ON hits FOR EACH ROW EXECUTE FUNCTION refuse()"
)


@pytest.mark.parametrize("price", ["12,50", 'a "12,50" b', "«12,50»", "numeric: 12,50"])
async def test_message_names_the_type_but_no_value_of_a_row(dsn: str, price: str) -> None:
    """Dead letters and logs show the message, so it must hold no data of the hit."""
    sink = PostgresSink(dsn, "hits")
    assert await sink.write([row("1")]) == Delivered()
    with psycopg.connect(dsn) as connection:
        connection.execute(_PRICE)
    verdict = await sink.write([row("2", json.dumps({"name": "E", "price": price}))])
    await sink.close()
    assert isinstance(verdict, Rejected) and "12,50" not in verdict.message
    assert "InvalidTextRepresentation (22P02): invalid input syntax for type numeric" in verdict.message


@pytest.mark.parametrize("code", ["22P02", "23514", "42501", "P0001"])
async def test_message_holds_no_text_of_a_trigger_for_any_code(dsn: str, code: str) -> None:
    sink = PostgresSink(dsn, "hits")
    assert await sink.write([row("1")]) == Delivered()
    with psycopg.connect(dsn) as connection:
        connection.execute(_RAISE % code)  # type: ignore[arg-type] # a fixed statement
    verdict = await sink.write([row("2", '{"name": "E", "price": "secret price"}')])
    await sink.close()
    assert isinstance(verdict, Rejected | Misconfigured)
    assert "secret" not in verdict.message and code in verdict.message


async def test_message_names_the_column_and_the_constraint(dsn: str) -> None:
    sink = PostgresSink(dsn, "hits")
    assert await sink.write([row("1")]) == Delivered()
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE hits ADD CONSTRAINT only_u CHECK (user_id = 'u')")
    verdict = await sink.write([row("2", userId="somebody")])
    assert isinstance(verdict, Rejected) and "check constraint only_u" in verdict.message
    assert "somebody" not in verdict.message
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE hits ALTER COLUMN user_id SET NOT NULL")
    verdict = await sink.write([row("3", userId=None, anonymousId="a")])
    await sink.close()
    assert isinstance(verdict, Rejected) and "null value in column user_id of relation hits" in verdict.message


async def test_sink_reconnects_after_a_lost_connection(dsn: str) -> None:
    sink = PostgresSink(dsn, "hits")
    assert await sink.write([row("1")]) == Delivered()
    ask(dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hitrouter'")
    assert isinstance(await sink.write([row("2")]), Retry)
    assert await sink.write([row("2")]) == Delivered()
    await sink.close()


async def test_concurrent_creation_of_the_table_rejects_no_row(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = PostgresSink._prepare_table

    async def beaten(self: PostgresSink, connection: psycopg.AsyncConnection) -> None:
        await prepare(self, connection)
        monkeypatch.undo()
        raise psycopg.errors.UniqueViolation("pg_type_typname_nsp_index")

    sink = PostgresSink(dsn, "hits")
    monkeypatch.setattr(PostgresSink, "_prepare_table", beaten)
    assert await sink.write([row("1")]) == Retry("UniqueViolation")
    assert await sink.write([row("1")]) == Delivered()
    await sink.close()


async def test_silent_server_times_out(dsn: str) -> None:
    sink = PostgresSink(dsn, "hits", timeout_seconds=1.0)
    assert await sink.write([row("1")]) == Delivered()
    ((backend,),) = ask(dsn, "SELECT pid FROM pg_stat_activity WHERE application_name = 'hitrouter'")
    os.kill(backend, signal.SIGSTOP)
    try:
        assert await asyncio.wait_for(sink.write([row("2")]), 20) == Retry("Timeout")
        assert await PostgresSink(dsn, "hits").write([row("2")]) == Delivered()
    finally:
        os.kill(backend, signal.SIGCONT)
    assert await sink.write([row("2")]) == Delivered()
    await sink.close()


def test_unstorable_hit_is_dead_lettered_and_other_hits_are_stored(
    make_config: MakeConfig, tmp_path: Path, dsn: str
) -> None:
    config = make_config({"table": {"destination": "PostgreSQL", "settings": {"dsn": dsn}}})
    (tmp_path / "route").mkdir()
    with running("route", config, tmp_path / "route"), running("deliver", config, tmp_path):
        put(config, *(hit(str(number)) for number in range(200)))
        put(config, hit("poison", extra="\x00"), hit("poison2", event={"name": "\x00", "user": {"userId": "u"}}))
        wait_until(lambda: read_ledger(config).connections["table"].delivered == 201, "the ledger")
        wait_until(lambda: len(dead(config)) == 1, "the dead letter")
        assert ask(dsn, "SELECT count(*), count(DISTINCT hit_id) FROM hits") == [(201, 201)]
        assert read_ledger(config).adds_up
