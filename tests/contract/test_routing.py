"""What the data engineer's file decides, on a real Kafka: contract.md, sections 3 and 4; docs/reference/routing.md."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Message

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import RAW_HIT_SCHEMA
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.config.models import Config
from pipeline.kafka.schema_registry import SchemaRegistry
from pipeline.kafka.topics import TopicNames
from pipeline.operations.ledger import read_ledger
from pipeline.operations.read_topic import read_topic
from tests.roles import Role, dead, delivered, hit, ids, put, running, wait_until

MakeConfig = Callable[..., Config]


def order(hit_id: str, user: str = "u", **event: Any) -> bytes:
    body = {"hitId": hit_id, "event": {"name": "Order", "user": {"userId": user, "emailHash": "h"}, **event}}
    return json.dumps(body).encode()


def records(config: Config, connection: str) -> list[Message]:
    return list(read_topic(config.kafka, TopicNames(config.kafka.topic_prefix).deliveries(connection)))


def headers(record: Message) -> dict[str, str]:
    return {name: bytes(value or b"").decode() for name, value in record.headers() or ()}


def reasons(config: Config, connection: str) -> dict[str, int]:
    found = read_ledger(config).reasons
    return {reason: count for (name, _, reason), count in found.items() if name == connection}


def test_each_connection_gets_what_its_lines_in_the_file_say(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        {
            "all": {"destination": "Kafka"},
            "orders": {"destination": "Kafka", "events": ["Ord*", "!Order cancelled"]},
            "large": {"destination": "Kafka", "when": "event.value > 10"},
            "none": {"destination": "Kafka", "sample": 0},
            "private": {"destination": "Kafka", "drop_fields": ["event.user.emailHash"]},
            "columns": {"destination": "Kafka", "format": "avro", "drop_fields": ["event.user"]},
        }
    )
    with running("route", config, tmp_path):
        put(config, order("1", value=5), order("2", value=50), order("3", value="much"), hit("4"))
        wait_until(lambda: ids(config, "all") == ["1", "2", "3", "4"], "four hits")
        assert ids(config, "orders") == ["1", "2", "3"]
        assert ids(config, "large") == ["2"]
        assert ids(config, "none") == []
        assert reasons(config, "orders") == {"event_not_selected": 1}
        assert reasons(config, "large") == {"when_false": 2, "when_failed": 1}
        assert reasons(config, "none") == {"sampled_out": 4}
        assert all("emailHash" not in routed["event"]["user"] for routed in delivered(config, "private"))
        assert any("emailHash" in routed["event"]["user"] for routed in delivered(config, "all"))
        framing = Framing(ROUTED_HIT_SCHEMA)
        columns = [framing.decode(record.value() or b"") for record in records(config, "columns")]
        assert sorted((c["hit_id"], c["event_name"]) for c in columns) == [
            *(("1", "Order"), ("2", "Order"), ("3", "Order"), ("4", "E"))
        ]
        assert all("user" not in json.loads(column["event"]) for column in columns)
        assert {headers(record)["config-version"] for record in records(config, "all")} == {config.version}
        assert read_ledger(config).adds_up


@pytest.mark.parametrize("on_violation", ["warn", "strip", "quarantine"])
def test_a_tracking_plan_warns_strips_or_quarantines(
    make_config: MakeConfig, tmp_path: Path, on_violation: str
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"properties": {"total": {"type": "number"}}}')
    projects = {"shop": {"tracking_plan": {"schema": str(plan), "on_violation": on_violation}}}
    config = make_config(projects=projects, connections={"a": {"destination": "Kafka"}})
    with running("route", config, tmp_path):
        put(config, order("good", total=1), order("bad", total="x"), order("bad", total="x"))
        wait_until(lambda: read_ledger(config).hits.received == 3, "three hits received")
        routed = {r["hitId"]: r["event"] for r in delivered(config, "a")}
        flagged = {headers(record).get("plan-violation") for record in records(config, "a")}
        ledger = read_ledger(config)
        if on_violation == "quarantine":
            assert list(routed) == ["good"]
            letters = [headers(record) for record in dead(config)]
            assert [(letter["reason"], letter["path"]) for letter in letters] == [("plan_violation", "event.total")] * 2
            assert ledger.hits.dead == 2
        else:
            assert routed["bad"].get("total") == ("x" if on_violation == "warn" else None)
            assert flagged == {None, "event.total"}
            assert ledger.notes["plan_violation", "event.total"] == 1
        assert ledger.adds_up


def test_a_changed_file_routes_and_delivers_anew_without_a_restart(make_config: MakeConfig, tmp_path: Path) -> None:
    archive = {"destination": "Files", "settings": {"path": str(tmp_path / "archive"), "format": "jsonl"}}
    config = make_config({"a": {"destination": "Kafka"}, "kept": archive})

    def change(connections: dict[str, Any]) -> Config:
        changed = Config.model_validate({**config.model_dump(mode="json", by_alias=True), "connections": connections})
        for folder in ("route", "deliver"):
            file = tmp_path / folder / "hitrouter.yaml"
            file.write_text(
                yaml.safe_dump(changed.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True))
            )
        return changed

    def stored(folder: str) -> list[str]:
        files = (tmp_path / folder).glob("*.jsonl")
        return sorted(json.loads(line)["hitId"] for file in files for line in file.read_text().splitlines())

    for folder in ("route", "deliver"):
        (tmp_path / folder).mkdir()
    with (
        running("route", config, tmp_path / "route") as route,
        running("deliver", config, tmp_path / "deliver") as deliver,
    ):
        put(config, hit("1"))
        wait_until(lambda: stored("archive") == ["1"], "the first hit in the archive")
        later = {"destination": "Files", "settings": {"path": str(tmp_path / "later"), "format": "jsonl"}}
        changed = change({"a": {"destination": "Kafka", "when": "false"}, "kept": archive, "new": later})
        route.wait_for(f"configuration in use: version={changed.version}")
        deliver.wait_for("partitions assigned: ", 2)
        put(config, hit("2"))
        wait_until(lambda: stored("archive") == ["1", "2"] and stored("later") == ["2"], "the second hit in both")
        assert ids(config, "a") == ["1"]
        change({"a": {"destination": "Nope"}})
        route.wait_for("unknown destination 'Nope'")
        change({"a": {"destination": "Kafka"}, "new": later})
        route.wait_for("configuration in use", 2)
        put(config, hit("3"))
        wait_until(lambda: stored("later") == ["2", "3"], "the third hit")
        assert stored("archive") == ["1", "2"]
        assert ids(config, "a") == ["1", "3"]
        assert (route.process.poll(), deliver.process.poll()) == (None, None)
        assert (route.stop(), deliver.stop()) == (0, 0)


class _Registry(BaseHTTPRequestHandler):
    """As much of Confluent's API as clients ask of it."""

    schemas: list[str]

    def do_POST(self) -> None:
        schema = json.loads(self.rfile.read(int(self.headers["content-length"])))["schema"]
        if schema not in self.schemas:
            self.schemas.append(schema)
        self._answer(200, {"id": self.schemas.index(schema) + 1})

    def do_GET(self) -> None:
        number = int(self.path.partition("?")[0].rpartition("/")[2])
        if number > len(self.schemas):
            self._answer(404, {"error_code": 40403, "message": "Schema not found"})
        else:
            self._answer(200, {"schema": self.schemas[number - 1]})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[str]:
    handler = type("Handler", (_Registry,), {"schemas": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_with_a_registry_avro_bears_the_numbers_of_its_schemas(
    make_config: MakeConfig, tmp_path: Path, registry: str
) -> None:
    archive = {"destination": "Files", "format": "avro", "settings": {"path": str(tmp_path / "x"), "format": "jsonl"}}
    config = make_config({"a": archive})
    config = config.model_copy(update={"kafka": config.kafka.model_copy(update={"schema_registry": registry})})
    front_end = SchemaRegistry(registry).framing("hits-raw", RAW_HIT_SCHEMA)
    sent = {"hit": hit("1"), "project": "shop", "received_at": None, "request_ip": "192.0.2.1", "user_agent": None}
    with running("route", config, tmp_path), _delivering(config, tmp_path):
        put(config, front_end.encode(sent), b"\x00\x00\x00\x00\x63unknown", project=None)
        wait_until(lambda: len(records(config, "a")) == 1 and len(dead(config)) == 1, "the hit and the dead letter")
        value = records(config, "a")[0].value() or b""
        assert value[:5] == b"\x00\x00\x00\x00\x02"
        routed = SchemaRegistry(registry).reading(ROUTED_HIT_SCHEMA).decode(value)
        assert (routed["hit_id"], json.loads(routed["context"])["ip"]) == ("1", "192.0.2.1")
        assert "has no schema 99" in headers(dead(config)[0])["message"]
        wait_until(lambda: list((tmp_path / "x").glob("*.jsonl")), "the file")
        line = next((tmp_path / "x").glob("*.jsonl")).read_text()
        assert json.loads(line)["hitId"] == "1"


def _delivering(config: Config, tmp_path: Path) -> Any:
    folder = tmp_path / "deliver"
    folder.mkdir()
    return running("deliver", config, folder)


def test_a_hit_survives_when_the_geo_database_is_replaced_by_a_broken_one(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    from tests.unit.test_enrichments import MAXMIND_CITY, database

    file = database(tmp_path / "geo.mmdb", {"192.0.2.0/24": MAXMIND_CITY})
    config = make_config({"a": {"destination": "Kafka"}}, enrich={"geo": {"database": str(file)}})

    def city(hit_id: str) -> Any:
        found = {r["hitId"]: r["context"].get("location", {}).get("city") for r in delivered(config, "a")}
        return found.get(hit_id, "not there")

    def send(route: Role, hit_id: str) -> None:
        put(config, hit(hit_id, context={"ip": "192.0.2.7"}))
        wait_until(lambda: city(hit_id) != "not there", f"hit {hit_id}")

    with running("route", config, tmp_path) as route:
        send(route, "1")
        file.write_bytes(b"broken")
        route.wait_for("configuration refused")
        send(route, "2")
        other = {**MAXMIND_CITY, "city": {"names": {"en": "Leeds"}}}
        database(tmp_path / "new.mmdb", {"192.0.2.0/24": other}).replace(file)
        route.wait_for("configuration in use")
        send(route, "3")
        file.unlink()
        route.wait_for("configuration refused", 2)
        send(route, "4")
        assert [city(number) for number in "1234"] == ["London", "London", "Leeds", "Leeds"]
