"""Tests that the published schemas are current, correct and backward compatible."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import jsonschema_rs
import pytest
import yaml
from fastavro.schema import parse_schema
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.hit import decode_hit
from pipeline.config.descriptions import DESCRIPTIONS
from pipeline.config.file_schema import config_schema
from pipeline.errors import InvalidHit
from pipeline.registry import declared_destinations
from schemas import read_schema

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"


def test_published_schema_of_the_configuration_is_current() -> None:
    assert read_schema("config.schema.json") == config_schema(), "run `make schemas`"


def test_every_key_has_a_description() -> None:
    schema = read_schema("config.schema.json")
    sections = {"Config": schema, **schema["$defs"]}
    shown = {
        f"{name}.{key}": p.get("description")
        for name, section in sections.items()
        for key, p in section.get("properties", {}).items()
    }
    assert {name: text for name, text in shown.items() if name.partition(".")[0] in _SECTIONS} == DESCRIPTIONS
    assert all(shown.values()), "a destination's settings are described in its file"


_SECTIONS = {name.partition(".")[0] for name in DESCRIPTIONS}


@pytest.mark.parametrize(
    ("connection", "valid"),
    [
        ({"destination": "Kafka"}, True),
        ({"destination": "Kafka", "settings": {"topic": "x"}}, False),
        ({"destination": "Webhook", "settings": {"url": "${URL}"}}, True),
        ({"destination": "Webhook", "settings": {"url": "${URL}", "ulr": ""}}, False),
        ({"destination": "Webhook"}, False),
        ({"destination": "Files", "settings": {"path": "x", "format": "csv"}}, False),
        ({"destination": "webhook", "settings": {"url": "${URL}"}}, False),
        ({"destination": "Facebook Pixel", "settings": {}}, False),
    ],
    ids=lambda value: str(value).translate({ord(c): None for c in "{}' "}),
)
def test_schema_validates_destinations_and_their_settings(connection: dict[str, Any], valid: bool) -> None:
    assert _CONFIG.is_valid({"connections": {"a": connection}}) is valid


def test_schema_lists_the_aliases_of_a_destination() -> None:
    destination = read_schema("config.schema.json")["$defs"]["ConnectionConfig"]["properties"]["destination"]
    said = dict(zip(destination["enum"], destination["enumDescriptions"], strict=True))
    assert said.keys() == declared_destinations().keys()
    for kind in declared_destinations().values():
        assert all(alias in said[kind.name] for alias in kind.aliases)


_CONFIG = jsonschema_rs.validator_for(read_schema("config.schema.json"))


def test_schema_accepts_the_example_and_refuses_a_wrong_key() -> None:
    example = yaml.safe_load((ROOT / "examples" / "hitrouter.yaml").read_text())
    assert _CONFIG.is_valid(example)
    assert not _CONFIG.is_valid({**example, "kafak": {}})


_identity = st.none() | st.just("") | st.just(" ") | st.just("u") | st.just(7) | st.just([])
_named = st.fixed_dictionaries({}, optional={"userId": _identity, "anonymousId": _identity})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "hitId": st.sampled_from([None, "", "h", "h" * 256, "h" * 257, 7, 1.5, True, []]),
            "sentAt": st.sampled_from([None, "x", 7]),
            "event": st.none() | st.just(7) | st.fixed_dictionaries({}, optional={"user": st.none() | _named}),
            "context": st.sampled_from([None, {}, [], "x"]),
            "integrations": st.sampled_from(
                [None, {}, [], {"All": True}, {"All": {}}, {"All": None, "x": None}, {"x": {"a": 1}}, {"x": "false"}]
            ),
            "userId": _identity,
            "anonymousId": _identity,
            "user": _identity | _named,
        },
    )
)
def test_schema_of_a_hit_agrees_with_the_intake(hit: dict[str, Any]) -> None:
    try:
        decode_hit(json.dumps(hit).encode())
        accepted = True
    except InvalidHit:
        accepted = False
    assert _HIT.is_valid(hit) is accepted


_HIT = jsonschema_rs.validator_for(read_schema("hit.schema.json"))


@pytest.mark.parametrize("name", ["raw_hit", "routed_hit", "dead_letter", "ledger_entry"])
def test_each_schema_reads_data_of_earlier_versions(name: str) -> None:
    current = parse_schema(read_schema(f"{name}.avsc"))
    former = sorted((GOLDEN / "avro").glob(f"{name}.*.json"))
    assert former, f"put the first version of {name}.avsc and a value of it into tests/golden/avro"
    for file in former:
        version = json.loads(file.read_text())
        written = bytes.fromhex(version["bytes"])
        read = fastavro.schemaless_reader(io.BytesIO(written), parse_schema(version["schema"]), current)
        for field, value in version["value"].items():
            found = read[field]
            assert (found.hex() if isinstance(found, bytes) else str(found)) == value, (file.name, field)
