"""Tests of the BigQuery sink against an imitation of BigQuery (tests/bigquery.py)."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud.bigquery_storage_v1.types import StorageError
from google.rpc import code_pb2, status_pb2

from pipeline.config.models import Config
from pipeline.delivery.examples import routed
from pipeline.destination import BigQuery, Delivered, Misconfigured, Outcome, Rejected, Retry
from pipeline.operations.ledger import read_ledger
from pipeline.registry import declared_destinations
from pipeline.sinks.bigquery import BigQuerySink
from pipeline.sinks.bigquery_table import encode_row, split_into_requests
from pipeline.sinks.table_row import Row, row_of
from tests.bigquery import FakeBigQuery, Table, running_bigquery
from tests.contract.test_postgres import row
from tests.roles import dead, hit, put, running, wait_until
from tests.unit.test_destinations import random_hit

pytestmark = pytest.mark.anyio


@pytest.fixture
def bigquery() -> Iterator[FakeBigQuery]:
    with running_bigquery() as fake:
        yield fake


def sink(
    fake: FakeBigQuery, timeout_seconds: float = 20.0, request_bytes: int | None = None, **more: Any
) -> BigQuerySink:
    destination = declared_destinations()["Google BigQuery"]
    declared = destination.sink
    assert isinstance(declared, BigQuery)
    if request_bytes is not None:
        limits = type(declared.limits)(events=5_000, request_bytes=request_bytes)
        declared = BigQuery(declared.table, declared.key, declared.key_file, declared.url, declared.storage_url, limits)
    return BigQuerySink(declared, destination.settings.model_validate({**fake.settings, **more}), timeout_seconds)


async def write(sink: BigQuerySink, *rows: Row) -> list[Outcome]:
    verdict = await sink.write(rows)
    return list(verdict) if isinstance(verdict, list) else [verdict] * len(rows)


def ids(fake: FakeBigQuery, table: str = "hits") -> list[str]:
    return sorted(stored["hit_id"] for stored in fake.table(table).rows)


async def test_repeated_batch_with_other_boundaries_is_stored_once(bigquery: FakeBigQuery) -> None:
    first, zombie = sink(bigquery), sink(bigquery)
    assert await write(first, *(row(str(n)) for n in range(5))) == [Delivered()] * 5
    assert await write(zombie, *(row(str(n)) for n in range(3, 9))) == [Delivered()] * 6
    assert await write(first, row("4"), row("4"), row("9")) == [Delivered()] * 3
    await first.close()
    await zombie.close()
    assert ids(bigquery) == list("0123456789")
    assert bigquery.stored == 14
    assert bigquery.calls == 2, "one connection for each sink"


async def test_missing_table_is_created_and_hit_is_stored_as_row(bigquery: FakeBigQuery) -> None:
    made = sink(bigquery)
    assert await write(made, row("1", options={"list": "ä"})) == [Delivered()]
    await made.close()
    assert bigquery.table().rows == [
        {
            "project_id": "shop",
            "hit_id": "1",
            "received_at": 1_795_515_330_123_000,
            "sent_at": 1_795_515_330_123_000,
            "user_id": "u",
            "event_name": "E",
            "event": '{"name":"E","user":{"userId":"u"}}',
            "context": "{}",
            "options": '{"list": "\\u00e4"}',
        }
    ]
    body = bigquery.table().body
    assert body["tableConstraints"] == {"primaryKey": {"columns": ["project_id", "hit_id"]}}
    assert [column["type"] for column in body["schema"]["fields"]] == ["STRING"] * 2 + ["TIMESTAMP"] * 2 + [
        "STRING"
    ] * 3 + ["JSON"] * 4


async def test_refused_rows_are_rejected_and_others_are_stored(bigquery: FakeBigQuery) -> None:
    made = sink(bigquery)
    digits = row("bad", event='{"name":"E","value":1234567890123456789012345678901234567891}')
    outcomes = await write(made, row("1"), digits, row("2"), row("3"))
    assert outcomes == [
        Delivered(),
        Rejected("not_storable", "BigQuery refuses the row: FIELDS_ERROR"),
        *[Delivered()] * 2,
    ]
    bigquery.faults += ["row 0", "row 1"]
    assert [type(outcome) for outcome in await write(made, row("4"), row("5"), row("6"))] == [
        Rejected, Delivered, Rejected
    ]  # fmt: skip
    await made.close()
    assert ids(bigquery) == ["1", "2", "3", "5"]
    assert bigquery.calls == 1, "a refused row ends no connection"


async def test_batch_is_split_into_requests_within_the_limit(bigquery: FakeBigQuery) -> None:
    made = sink(bigquery)
    texts = [row(str(n), event=json.dumps({"name": "E", "text": "x" * 2_000_000})) for n in range(11)]
    assert await write(made, *texts) == [Delivered()] * 11
    assert bigquery.requests == [4, 4, 3]
    await made.close()
    small = sink(bigquery, request_bytes=1_000)
    too_large = row("large", event=json.dumps({"text": "x" * 1_000}))
    assert [type(outcome) for outcome in await write(small, row("a"), too_large)] == [Delivered, Rejected]
    await small.close()


def test_10_000_random_hits_are_each_in_one_request_within_the_limit() -> None:
    draw = random.Random(7)
    rows = [row_of(routed(random_hit(draw, number)).hit) for number in range(10_000)]
    upserts = [encode_row(row, 9_000_000) for row in rows]
    requests = list(split_into_requests(((n, u) for n, u in enumerate(upserts) if isinstance(u, bytes)), 100_000))
    assert [position for request in requests for position in request] == list(range(10_000))
    assert all(sum(map(len, request.values())) <= 100_000 for request in requests)


async def test_lost_response_stores_no_row_twice(bigquery: FakeBigQuery) -> None:
    made = sink(bigquery)
    bigquery.faults += ["lost"]
    assert [type(outcome) for outcome in await write(made, row("1"), row("2"))] == [Retry, Retry]
    assert await write(made, row("1"), row("2"), row("3")) == [Delivered()] * 3
    bigquery.faults += ["lost"]
    assert await write(made, row("4")) == [Delivered()], "a connection that has served is made again at once"
    await made.close()
    assert ids(bigquery) == ["1", "2", "3", "4"]
    assert bigquery.stored == 7


CODES = {
    **dict.fromkeys(["PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND", "FAILED_PRECONDITION"], Misconfigured),
    **dict.fromkeys(["RESOURCE_EXHAUSTED", "UNAVAILABLE", "ABORTED", "INTERNAL", "DEADLINE_EXCEEDED"], Retry),
    **dict.fromkeys(["ALREADY_EXISTS", "OUT_OF_RANGE", "UNKNOWN", "CANCELLED"], Retry),
    "INVALID_ARGUMENT": Rejected,
}


@pytest.mark.parametrize("in_place", [False, True], ids=["ends the call", "answers in place"])
@pytest.mark.parametrize(("code", "outcome"), CODES.items(), ids=list(CODES))
async def test_every_error_code_has_its_outcome_and_rows_can_be_written_later(
    bigquery: FakeBigQuery, code: str, outcome: type[Outcome], in_place: bool
) -> None:
    made = sink(bigquery)
    bigquery.faults += [status_pb2.Status(code=getattr(code_pb2, code)) if in_place else grpc.StatusCode[code]]
    [got] = await write(made, row("1"))
    assert type(got) is outcome
    assert await write(made, row("1")) == [Delivered()]
    await made.close()
    assert ids(bigquery) == ["1"]


async def test_column_not_yet_visible_to_bigquery_rejects_no_hit(bigquery: FakeBigQuery) -> None:
    made = sink(bigquery)
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT)
    status.details.add().Pack(StorageError.pb(StorageError(code=7)))
    bigquery.faults += [status]
    [got] = await write(made, row("1"))
    assert isinstance(got, Misconfigured)
    assert "SCHEMA_MISMATCH_EXTRA_FIELDS" in got.message
    await made.close()


async def test_dropped_primary_key_pauses_connection_and_rejects_no_hit(bigquery: FakeBigQuery) -> None:
    made = sink(bigquery)
    assert await write(made, row("1")) == [Delivered()]
    del bigquery.table().body["tableConstraints"]
    bigquery.faults += [status_pb2.Status(code=code_pb2.INVALID_ARGUMENT)]
    [got] = await write(made, row("2"))
    assert isinstance(got, Misconfigured)
    assert "ADD PRIMARY KEY" in got.message


async def test_deleted_table_is_created_again(bigquery: FakeBigQuery) -> None:
    made = sink(bigquery)
    assert await write(made, row("1")) == [Delivered()]
    bigquery.tables.clear()
    assert [type(outcome) for outcome in await write(made, row("1"))] == [Misconfigured]
    assert await write(made, row("1")) == [Delivered()]
    await made.close()


async def test_stalled_stream_times_out(bigquery: FakeBigQuery) -> None:
    made = sink(bigquery, timeout_seconds=0.3)
    bigquery.gate.clear()
    assert await write(made, row("1")) == [Retry("BigQuery did not answer within 0.3 s")]
    bigquery.gate.set()
    assert await write(made, row("1")) == [Delivered()]
    await made.close()
    assert ids(bigquery) == ["1"]


async def test_table_of_older_version_gets_missing_columns(bigquery: FakeBigQuery) -> None:
    fields = [
        {"name": name, "type": "STRING", "mode": "NULLABLE"} for name in ("project_id", "hit_id", "mine", "event")
    ]
    key = {"primaryKey": {"columns": ["project_id", "hit_id"]}}
    bigquery.tables["shop-1.analytics.hits"] = Table({"schema": {"fields": fields}, "tableConstraints": key})
    made = sink(bigquery)
    assert await write(made, row("1")) == [Delivered()]
    await made.close()
    columns = [column["name"] for column in bigquery.table().body["schema"]["fields"]]
    assert columns[:5] == ["project_id", "hit_id", "mine", "event", "received_at"]
    assert len(columns) == 12


async def test_complete_table_is_read_but_not_changed(bigquery: FakeBigQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sink(bigquery)
    assert await write(made, row("1")) == [Delivered()]
    await made.close()
    asked: list[str] = []
    rest = bigquery.rest

    def read_only(method: str, path: str, body: Any) -> tuple[int, Any]:
        asked.append(method)
        return rest(method, path, body) if method == "GET" else (403, {"error": {"code": 403}})

    monkeypatch.setattr(bigquery, "rest", read_only)
    again = sink(bigquery)
    assert await write(again, row("2")) == [Delivered()]
    await again.close()
    assert asked == ["GET"]


async def test_log_lines_hold_no_value_of_a_row(bigquery: FakeBigQuery, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = sink(bigquery)
    bigquery.faults += [status_pb2.Status(code=code_pb2.INTERNAL, message="the value 'secret' is no number")]
    assert [type(outcome) for outcome in await write(made, row("1"))] == [Retry]
    bigquery.faults += ["row 0"]
    assert [type(outcome) for outcome in await write(made, row("1"))] == [Rejected]
    await made.close()
    assert "secret" not in caplog.text and "a value of the row" not in caplog.text


def key_of(names: list[str]) -> dict[str, Any]:
    return {"tableConstraints": {"primaryKey": {"columns": names}}}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"schema": {"fields": []}}, "ADD PRIMARY KEY (project_id, hit_id) NOT ENFORCED"),
        ({"schema": {"fields": []}, **key_of(["hit_id"])}, "has the primary key (hit_id)"),
        ({"type": "VIEW"}, "is a VIEW"),
        (
            {"schema": {"fields": [{"name": "sent_at", "type": "DATETIME"}]}, **key_of(["project_id", "hit_id"])},
            "has sent_at as NULLABLE DATETIME instead of TIMESTAMP",
        ),
        (
            {
                "schema": {"fields": [{"name": "mine", "type": "STRING", "mode": "REQUIRED"}]},
                **key_of(["project_id", "hit_id"]),
            },
            "requires a value for mine",
        ),
    ],
    ids=["no key", "another key", "a view", "another type", "a column that no hit has"],
)
async def test_table_that_cannot_hold_each_hit_once_pauses_connection(
    bigquery: FakeBigQuery, body: dict[str, Any], says: str
) -> None:
    bigquery.tables["shop-1.analytics.hits"] = Table(body)
    [outcome] = await write(sink(bigquery), row("1"))
    assert isinstance(outcome, Misconfigured)
    assert says in outcome.message
    assert bigquery.requests == []


@pytest.mark.parametrize(
    ("status", "outcome"), [(401, Misconfigured), (403, Misconfigured), (409, Retry), (429, Retry), (503, Retry)]
)
async def test_every_rest_status_has_its_outcome(bigquery: FakeBigQuery, status: int, outcome: type[Outcome]) -> None:
    bigquery.rest_status = status
    assert [type(got) for got in await write(sink(bigquery), row("1"))] == [outcome]


async def test_missing_dataset_is_misconfigured_and_unreachable_server_is_retried(
    bigquery: FakeBigQuery,
) -> None:
    assert isinstance((await write(sink(bigquery, dataset="nosuch"), row("1")))[0], Misconfigured)
    assert isinstance((await write(sink(bigquery, url="http://127.0.0.1:1"), row("1")))[0], Retry)
    assert isinstance((await write(sink(bigquery, storage_url="http://127.0.0.1:1"), row("1")))[0], Retry)


def service_key(token_uri: str) -> str:
    private = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps({"client_email": "h@shop-1.iam", "private_key": private.decode(), "token_uri": token_uri})


async def test_refused_key_is_misconfigured_and_not_shown(bigquery: FakeBigQuery, tmp_path: Path) -> None:
    class Tokens(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = b'{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}'
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    tokens = HTTPServer(("127.0.0.1", 0), Tokens)
    Thread(target=tokens.serve_forever, daemon=True).start()
    key = service_key(f"http://127.0.0.1:{tokens.server_port}/token")
    (tmp_path / "key.json").write_text(key)
    (tmp_path / "broken.json").write_text("{")
    try:
        for given in ({"credentials": key}, {"credentials_file": str(tmp_path / "key.json")}):
            [outcome] = await write(sink(bigquery, url="https://127.0.0.1:1", **given), row("1"))
            assert outcome == Misconfigured("Google refuses the credentials: RefreshError; check them")
    finally:
        tokens.shutdown()
        tokens.server_close()
    with pytest.raises(ValueError, match="must be the JSON of a service account key"):
        sink(bigquery, credentials='{"private_key": "s3cret"}')
    [outcome] = await write(sink(bigquery, url="https://127.0.0.1:1", credentials=key), row("1"))
    assert outcome == Retry("TransportError"), "nobody answers there any more"
    for file in ("broken.json", "nosuch.json"):
        broken = sink(bigquery, url="https://127.0.0.1:1", credentials_file=str(tmp_path / file))
        [outcome] = await write(broken, row("1"))
        assert isinstance(outcome, Misconfigured)
        assert file in outcome.message


def test_kill_9_before_the_response_stores_each_hit_once_and_dead_letters_refused_hits(
    make_config: Callable[..., Config], tmp_path: Path, bigquery: FakeBigQuery
) -> None:
    config = make_config({"warehouse": {"destination": "Google BigQuery", "settings": bigquery.settings}})
    (tmp_path / "route").mkdir()
    with running("route", config, tmp_path / "route"):
        put(config, *(hit(str(number)) for number in range(200)))
        bigquery.gate.clear()
        with running("deliver", config, tmp_path) as worker:
            wait_until(lambda: bigquery.stored, "an append that is stored and gets no answer")
            worker.kill()
        before = bigquery.stored
        bigquery.gate.set()
        put(config, hit("poison", event={"name": "E", "value": 10**39 + 1, "user": {"userId": "u"}}))
        put(config, hit("unwanted", integrations={"DDManager Streaming": False}))
        put(config, hit("wanted", integrations={"All": False, "DDManager Streaming": {"note": "old name"}}))
        with running("deliver", config, tmp_path):
            wait_until(lambda: read_ledger(config).connections["warehouse"].delivered == 201, "the ledger")
            wait_until(lambda: len(dead(config)) == 1, "the dead letter")
        assert ids(bigquery) == sorted([*map(str, range(200)), "wanted"])
        assert bigquery.stored >= 201 + before, "what was stored before the kill was sent again"
        assert read_ledger(config).adds_up
