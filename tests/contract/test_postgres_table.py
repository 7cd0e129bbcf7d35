"""Tests of the PostgreSQL sink's requirements: the table, privileges, locks, and connection pools."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from typing import Any

import psycopg
import pytest

from pipeline.destination import Delivered, Misconfigured, Rejected, Verdict
from pipeline.sinks.postgres import PostgresSink
from tests.contract.test_postgres import ask, row
from tests.postgres import new_database, running_pgbouncer

pytestmark = pytest.mark.anyio

_numbers = itertools.count(1)
_LOCKS = "SELECT mode FROM pg_locks WHERE relation = 'hits'::regclass AND pid != pg_backend_pid()"


@pytest.fixture
def dsn(postgres: Any) -> str:
    """A new database for each test."""
    return new_database(postgres, f"table_{next(_numbers)}")


def run(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload] # fixed statements


async def stored(dsn: str, *hit_ids: str, table: str = "hits", **more: Any) -> Verdict:
    """Return the outcome of these hits from a new sink."""
    sink = PostgresSink(dsn, table)
    try:
        return await sink.write([row(hit_id, **more) for hit_id in hit_ids])
    finally:
        await sink.close()


def role(dsn: str, *rights: str) -> str:
    """Return the dsn of a new role with these privileges, and without TEMPORARY, which hardened servers revoke."""
    known, name = psycopg.conninfo.conninfo_to_dict(dsn), f"app_{next(_numbers)}"
    run(dsn, f"CREATE ROLE {name} LOGIN", f"REVOKE ALL ON DATABASE {known['dbname']} FROM PUBLIC")
    run(
        dsn, f"GRANT CONNECT ON DATABASE {known['dbname']} TO {name}", *(f"GRANT {right} TO {name}" for right in rights)
    )
    return psycopg.conninfo.make_conninfo(**{**known, "user": name})


async def test_complete_table_needs_only_insert_and_select(dsn: str) -> None:
    """The privilege TEMPORARY and the ownership of the table are not needed."""
    assert await stored(dsn, "1") == Delivered()
    app = role(dsn, "USAGE ON SCHEMA public", "INSERT, SELECT ON hits")
    assert await stored(app, "1", "2") == Delivered()
    columns = role(dsn, "USAGE ON SCHEMA public", "INSERT ON hits", "SELECT (project_id, hit_id) ON hits")
    assert await stored(columns, "2", "3") == Delivered(), "the key is all that is read"
    assert ask(dsn, "SELECT hit_id FROM hits ORDER BY 1") == [("1",), ("2",), ("3",)]


async def test_missing_privilege_is_named_with_its_purpose(dsn: str) -> None:
    nobody = role(dsn, "USAGE ON SCHEMA public")
    verdict = await stored(nobody, "1")
    assert isinstance(verdict, Misconfigured) and "GRANT CREATE ON SCHEMA" in verdict.message
    assert await stored(dsn, "1") == Delivered()
    verdict = await stored(nobody, "1")
    assert isinstance(verdict, Misconfigured) and "GRANT INSERT, SELECT ON" in verdict.message
    run(dsn, "ALTER TABLE hits DROP COLUMN options")
    verdict = await stored(role(dsn, "USAGE ON SCHEMA public", "INSERT, SELECT ON hits"), "1")
    assert isinstance(verdict, Misconfigured)
    assert 'ALTER TABLE "hits" ADD COLUMN IF NOT EXISTS options jsonb' in verdict.message


async def test_open_select_blocks_neither_a_complete_table_nor_other_readers(dsn: str) -> None:
    """A complete table is not altered, so no ACCESS EXCLUSIVE lock is requested."""
    assert await stored(dsn, "1") == Delivered()
    with psycopg.connect(dsn) as analyst:
        analyst.execute("SELECT count(*) FROM hits")
        assert await asyncio.wait_for(stored(dsn, "2"), 10) == Delivered()
        assert ("AccessExclusiveLock",) not in ask(dsn, _LOCKS)


async def test_missing_column_behind_an_open_select_pauses_and_does_not_block_readers(dsn: str) -> None:
    assert await stored(dsn, "1") == Delivered()
    run(dsn, "ALTER TABLE hits DROP COLUMN options")
    with psycopg.connect(dsn) as analyst:
        analyst.execute("SELECT count(*) FROM hits")
        began = time.monotonic()
        verdict = await asyncio.wait_for(stored(dsn, "2"), 30)
        assert time.monotonic() - began < 20, "it gives up long before the statement's limit of 60 s"
        assert isinstance(verdict, Misconfigured)
        assert "ACCESS EXCLUSIVE" in verdict.message and "options" in verdict.message
        assert ask(dsn, "SELECT count(*) FROM hits") == [(1,)]
    assert await stored(dsn, "2") == Delivered()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("ALTER TABLE hits DROP CONSTRAINT hits_pkey", "CREATE UNIQUE INDEX CONCURRENTLY"),
        ("ALTER TABLE hits ALTER COLUMN event TYPE integer USING 1", "event"),
        ("ALTER TABLE hits ADD COLUMN tenant text NOT NULL", "tenant"),
        (
            "CREATE DOMAIN filled AS text NOT NULL; ALTER TABLE hits ADD COLUMN tenant filled",
            "tenant",
        ),
        ("ALTER TABLE hits ADD COLUMN tenant text CONSTRAINT known CHECK (tenant IS NOT NULL)", "constraint known"),
        ("ALTER TABLE hits ADD COLUMN lot int DEFAULT 1; CREATE UNIQUE INDEX one_lot ON hits (lot)", "constraint one_lot"),
        (
            "CREATE TABLE lots (id int PRIMARY KEY); ALTER TABLE hits ADD COLUMN lot int DEFAULT 1 "
            "CONSTRAINT its_lot REFERENCES lots",
            "constraint its_lot",
        ),
    ],
    ids=["no key", "another type", "NOT NULL", "a domain NOT NULL", "a check", "a unique index", "a foreign key"],
)  # fmt: skip
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_table_that_refuses_every_hit_pauses_connection(dsn: str, change: str, says: str, when: str) -> None:
    """No hit is at fault, so none becomes a dead letter."""
    sink = PostgresSink(dsn, "hits")
    assert await sink.write([row("1")]) == Delivered()
    run(dsn, "DELETE FROM hits", change)
    if "one_lot" in change:
        run(dsn, "INSERT INTO hits SELECT 'a', 'a', now(), now(), 'u', 'a', 'e', '{}', '{}'")
    if when == "before":
        await sink.close()
        sink = PostgresSink(dsn, "hits")
    verdict = await sink.write([row("2"), row("3")])
    assert isinstance(verdict, Misconfigured), verdict
    verdict = await sink.write([row("2"), row("3")])
    assert isinstance(verdict, Misconfigured), "and at the next probe, which looks at the table anew"
    assert says in verdict.message
    await sink.close()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE hits ALTER COLUMN user_id SET NOT NULL",
        "ALTER TABLE hits ADD COLUMN mail text GENERATED ALWAYS AS (event->>'mail') STORED NOT NULL",
        "ALTER TABLE hits ADD COLUMN mail text NOT NULL; CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN new.mail := new.event->>'mail'; RETURN new; END $$; "
        "CREATE TRIGGER fill BEFORE INSERT ON hits FOR EACH ROW EXECUTE FUNCTION fill()",
    ],
    ids=["our column", "a generated column", "a column that a trigger fills"],
)
async def test_constraint_on_columns_of_a_hit_rejects_only_that_hit(dsn: str, change: str) -> None:
    assert await stored(dsn, "1") == Delivered()
    run(dsn, "DELETE FROM hits", change)
    assert await stored(dsn, "2", event='{"name":"E","mail":"a@b.example"}') == Delivered()
    verdict = await stored(dsn, "3", userId=None, anonymousId="a")
    assert isinstance(verdict, Rejected) and "null value in column" in verdict.message


async def test_view_accepts_hits_unless_it_lacks_columns(dsn: str) -> None:
    assert await stored(dsn, "1") == Delivered()
    run(dsn, "CREATE VIEW all_hits AS SELECT * FROM hits", "CREATE VIEW few AS SELECT hit_id FROM hits")
    assert await stored(dsn, "1", "2", table="public.all_hits") == Delivered()
    verdict = await stored(dsn, "3", table="few")
    assert isinstance(verdict, Misconfigured) and "project_id" in verdict.message


_ROUTE = (
    "CREATE FUNCTION route() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN EXECUTE 'INSERT INTO t_' || (new.event->>'mail') || ' VALUES (1)'; RETURN new; END $$; "
    "CREATE TRIGGER route BEFORE INSERT ON hits FOR EACH ROW EXECUTE FUNCTION route()"
)


@pytest.mark.parametrize("mail", ["secret", "secret x", "'secret", "x(secret)"])
async def test_message_holds_no_statement_that_a_trigger_builds(
    dsn: str, mail: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors of the server inside a function quote the statement that the function built, which can hold values."""
    caplog.set_level(logging.DEBUG)
    assert await stored(dsn, "1") == Delivered()
    run(dsn, _ROUTE)
    verdict = await stored(dsn, "2", event=json.dumps({"name": "E", "mail": mail}))
    assert isinstance(verdict, Rejected | Misconfigured)
    assert "secret" not in verdict.message + caplog.text


async def test_character_outside_the_database_encoding_rejects_only_its_hit(dsn: str) -> None:
    name = f"latin_{next(_numbers)}"
    run(dsn, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'")
    latin = psycopg.conninfo.make_conninfo(dsn, dbname=name)
    assert await stored(latin, "1", userId="\u00e9") == Delivered()
    assert isinstance(await stored(latin, "2", userId="\U0001f600"), Rejected)


async def test_large_batch_is_stored_atomically(dsn: str) -> None:
    sink = PostgresSink(dsn, "hits")
    large = '{"name":"E","text":"%s"}' % ("x" * 500_000)
    rows = [row(str(number), event=large) for number in range(40)]
    assert isinstance(await sink.write([*rows, row("bad", userId="\x00")]), Rejected)
    assert ask(dsn, "SELECT count(*) FROM hits") == [(0,)]
    assert await sink.write([*rows, *rows[:3]]) == Delivered()
    assert ask(dsn, "SELECT count(*) FROM hits") == [(40,)]
    await sink.close()


async def test_no_session_state_is_needed_between_batches(dsn: str) -> None:
    """Simulates a pool, which resets the session between transactions; the next test uses PgBouncer."""
    sink = PostgresSink(dsn, "hits")
    for number in range(8):
        assert await sink.write([row(str(number))]) == Delivered()
        assert sink._connection is not None
        assert await (await sink._connection.execute("SELECT name FROM pg_prepared_statements")).fetchall() == []
        await sink._connection.execute("DISCARD ALL")
    await sink.close()
    assert ask(dsn, "SELECT count(*) FROM hits") == [(8,)]


async def test_sink_works_behind_pgbouncer_in_transaction_mode(dsn: str, tmp_path: Any) -> None:
    """Skipped if PgBouncer is not installed; no package of the lock file contains it."""
    with running_pgbouncer(tmp_path, dsn) as pooled:
        sink = PostgresSink(pooled, "hits")
        others = [psycopg.connect(pooled, autocommit=True, prepare_threshold=None) for _ in range(3)]
        for number in range(12):
            for other in others[: number % 3]:
                other.execute("BEGIN")
                other.execute("SELECT 1")
            assert await sink.write([row(str(number)), row("same")]) == Delivered()
            for other in others[: number % 3]:
                other.execute("COMMIT")
        await sink.close()
        for other in others:
            other.close()
        assert isinstance(await stored(psycopg.conninfo.make_conninfo(pooled, dbname="nosuch"), "1"), Misconfigured)
    assert ask(dsn, "SELECT count(*) FROM hits") == [(13,)]
