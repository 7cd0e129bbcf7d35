"""Tests that different parsers read equal values from a hit with repeated keys, because the router keeps each key once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.delivery.deliverers import ReadHit
from pipeline.router.routing import Routing
from pipeline.sinks.files import FileRecord, FilesSink, Format
from pipeline.sinks.folders import LocalFolder
from pipeline.stages.classify import RawHit, classify_raw
from tests.npm import NODE, SCRIPTS
from tests.unit.test_delivery import _HITS
from tests.unit.test_unique_keys import spelled

_CASE = b'{"hitId":"d","event":{"name":"E","user":{"userId":"u"},"value":1,"value":2}}'
_PLAIN = b'{"hitId":"e","event":{"name":"E","user":{"userId":"u"},"value":3}}'


@pytest.fixture(scope="module")
def routing() -> Routing:
    return Routing(Config.model_validate({"projects": {"shop": {}}, "connections": {"k": {"destination": "Kafka"}}}))


def left(routing: Routing, body: bytes) -> ReadHit:
    headers = [("project", b"shop"), ("received-at", b"1795515330123")]
    hit_id = json.loads(body)["hitId"]
    raw = classify_raw(body, f"shop/{hit_id}".encode(), headers, "hits-raw", 0, 0, 1, routing.plans)
    assert isinstance(raw, RawHit)
    ((_, value),) = routing.values(routing.route(raw, 0))
    read = _HITS.read(value)
    assert isinstance(read, ReadHit)
    return read


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_duckdb_reads_the_last_value_of_a_repeated_key(routing: Routing, format: Format, tmp_path: Path) -> None:
    hits = [left(routing, body) for body in (_CASE, _PLAIN)]
    rows = [FileRecord(offset, hit.value, hit.hit) for offset, hit in enumerate(hits)]
    FilesSink(LocalFolder(tmp_path), format, "deliveries-log").write(0, rows)
    column, reader = (
        ("event.value", "read_json_auto") if format == "jsonl" else ("(event->>'value')::INT", "read_parquet")
    )
    found = duckdb.sql(f"SELECT {column} FROM {reader}('{tmp_path}/*.{format}') ORDER BY _offset").fetchall()
    assert found == [(2,), (3,)]


_scalars = st.sampled_from(
    ['"x"', '"\\u003a"', '"a\\":"', '""', "1e2", "-0", "1.0", "123456789012345678901", "null", "true"]
)
_keys = st.builds(spelled, st.sampled_from(["a", "b", ":", "é", '"', "", "/~"]), st.booleans())
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(st.tuples(_keys, inner), min_size=1, max_size=4).map(
            lambda members: "{" + ", ".join(f"{key}: {value}" for key, value in members) + "}"
        )
        | st.lists(inner, max_size=2).map(lambda items: f"[{','.join(items)}]")
    ),
    max_leaves=10,
)


def floats(value: Any) -> Any:
    """Return `value` with all numbers as floats, the only numbers of JavaScript."""
    return json.loads(json.dumps(value), parse_int=float)


def leaves(value: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value that is not an object or a list, with its JSON pointer."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from leaves(inner, f"{pointer}/{place}")
    else:
        yield pointer, value


@settings(
    max_examples=5,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(st.lists(_values, min_size=60, max_size=60))
def test_python_javascript_postgresql_and_duckdb_read_equal_values(
    routing: Routing, postgres: Any, tmp_path: Path, values: list[str]
) -> None:
    bodies = [f'{{"hitId":"1","event":{{"user":{{"userId":"u"}},"v":{value}}}}}'.encode() for value in values]
    texts = [bytes(left(routing, body).hit.event).decode() for body in bodies]
    meant = [floats(json.loads(body)["event"]) for body in bodies]
    assert [floats(json.loads(text)) for text in texts] == meant
    lines = "\n".join(texts)
    done = subprocess.run([NODE, SCRIPTS / "parse_lines.mjs"], input=lines.encode(), capture_output=True, timeout=60)
    assert [floats(json.loads(line)) for line in done.stdout.splitlines()] == meant, done.stderr
    with psycopg.connect(postgres.get_uri()) as connection:
        rows = connection.execute(
            "SELECT v::jsonb::text FROM unnest(%s::text[]) WITH ORDINALITY AS t(v, n) ORDER BY n", [texts]
        )
        assert [floats(json.loads(text)) for (text,) in rows] == meant
    asked = [(text, pointer, leaf) for text, value in zip(texts, meant, strict=True) for pointer, leaf in leaves(value)]
    with duckdb.connect() as base:
        found = base.execute(
            "SELECT json_extract(event, pointer) FROM (SELECT unnest($1) AS event, unnest($2) AS pointer)",
            [[text for text, _, _ in asked], [pointer for _, pointer, _ in asked]],
        ).fetchall()
        assert [floats(json.loads(text)) for (text,) in found] == [leaf for _, _, leaf in asked]
        (tmp_path / "events.jsonl").write_text(lines)
        base.execute(f"SELECT * FROM read_json_auto('{tmp_path}/events.jsonl')").fetchall()


def test_documented_read_accepts_names_that_differ_in_case(routing: Routing, tmp_path: Path) -> None:
    hits = [left(routing, body) for body in (_PLAIN, _PLAIN.replace(b'"value":3', b'"Value":4,"value":5'))]
    rows = [FileRecord(offset, hit.value, hit.hit) for offset, hit in enumerate(hits)]
    FilesSink(LocalFolder(tmp_path), "jsonl", "deliveries-log").write(0, rows)
    files = f"read_json_auto('{tmp_path}/*.jsonl', maximum_depth = 1)"
    found = duckdb.sql(f"SELECT event->>'value', event->>'Value' FROM {files} ORDER BY _offset").fetchall()
    assert found == [("3", None), ("5", "4")]
