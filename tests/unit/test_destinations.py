"""Tests of every destination: its examples, and the conformance suite."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from pydantic import ValidationError
from standardwebhooks.webhooks import Webhook as StandardWebhook
from standardwebhooks.webhooks import WebhookVerificationError

from pipeline.config import Config
from pipeline.delivery.examples import hit_of, outcome_name, outcomes_of, readable, requests_of, rows_of
from pipeline.destination import BigQuery, ClickHouse, Delivered, Event, Http, Postgres, Rejected
from pipeline.development.new_destination import new_destination
from pipeline.development.new_destination import slug_of as slug
from pipeline.errors import ConfigurationError
from pipeline.operations.try_hit import try_hit
from pipeline.registry import declared_destinations
from tests.unit.conformance import (
    BODIES,
    STATUSES,
    broken_limits,
    incomplete_outcomes,
    random_hit,
    texts_of,
    told_credentials,
)

EXAMPLES = Path(__file__).parent.parent / "destinations"
HTTP = [destination for destination in declared_destinations().values() if isinstance(destination.sink, Http)]

TABLES = [d for d in declared_destinations().values() if isinstance(d.sink, ClickHouse | Postgres | BigQuery)]


def load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{slug(name)}.yaml").read_text())
    return data


CASES = [(d, case) for d in HTTP for case in load(d.name)["examples"]]
ANSWERS = [(d, case) for d in HTTP for case in load(d.name).get("answers", [])]


@pytest.mark.parametrize("name", ["Amplitude", "Mixpanel", "PostHog", "Segment", "Webhook"])
def test_public_hit_and_secret_hit_have_different_idempotency_keys(name: str) -> None:
    data = load(name)
    hit = {"event": {"name": "E", "user": {"userId": "u"}}, "hitId": "3f0e4b5c-52a3-4c9f-8f0a-2f6a6d1d3a11"}
    id_of = {"Webhook": lambda request: request.headers["webhook-id"]}.get(name, lambda request: request.body)
    made = [
        requests_of(declared_destinations()[name], data["settings"], [{**hit, **door}])[0]
        for door in ({}, {"door": "secret"}, {"door": "public"}, {"door": "public"})
    ]
    secret, same, public, again = (id_of(request) for (request,) in made)
    assert (secret, public) == (same, again), "the same at each attempt"
    assert hit["hitId"].encode() in (secret if isinstance(secret, bytes) else secret.encode())
    assert secret != public


@pytest.mark.parametrize(("destination", "case"), CASES, ids=[f"{slug(d.name)}-{c['name']}" for d, c in CASES])
def test_example_becomes_its_requests(destination: Any, case: dict[str, Any]) -> None:
    settings = {**load(destination.name)["settings"], **case.get("settings", {})}
    requests, early = requests_of(destination, settings, case["hits"])
    assert [readable(request) for request in requests] == case.get("requests", [])
    assert [outcome_name(outcome) for outcome in early] == case.get("outcomes", [])


def test_empty_object_in_an_example_is_a_response_body() -> None:
    seen: list[bytes] = []
    sink = Http(HTTP[0].sink.event, HTTP[0].sink.request, lambda response, _: seen.append(response.body) or Delivered())  # type: ignore
    outcomes_of(replace(HTTP[0], sink=sink), {"status": 200, "body": {}}, 1)
    outcomes_of(replace(HTTP[0], sink=sink), {"status": 200}, 1)
    assert seen == [b"{}", b""]


ROWS = [(d, case) for d in TABLES for case in load(d.name)["examples"]]


@pytest.mark.parametrize(("destination", "case"), ROWS, ids=[f"{slug(d.name)}-{c['name']}" for d, c in ROWS])
def test_example_becomes_its_rows(destination: Any, case: dict[str, Any]) -> None:
    destination.settings.model_validate(load(destination.name)["settings"])
    assert rows_of(case["hits"]) == case["rows"]


@pytest.mark.parametrize(("destination", "case"), ANSWERS, ids=[f"{slug(d.name)}-{c['name']}" for d, c in ANSWERS])
def test_response_gives_its_outcomes(destination: Any, case: dict[str, Any]) -> None:
    assert outcomes_of(destination, case["response"], case.get("events", len(case["outcomes"]))) == case["outcomes"]


@pytest.mark.parametrize("destination", HTTP, ids=lambda destination: slug(destination.name))
def test_10_000_random_hits_are_each_in_one_request_within_the_limits(destination: Any) -> None:
    settings = destination.settings.model_validate(load(destination.name)["settings"])
    draw = random.Random(7)
    assert list(broken_limits(destination, settings, [random_hit(draw, number) for number in range(10_000)])) == []


@pytest.mark.parametrize("destination", HTTP, ids=lambda destination: slug(destination.name))
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("body", BODIES)
def test_every_response_gives_each_event_an_outcome(destination: Any, status: int, body: bytes) -> None:
    assert list(incomplete_outcomes(destination, status, body)) == []


@pytest.mark.parametrize("destination", HTTP, ids=lambda destination: slug(destination.name))
def test_no_credential_is_in_texts_that_can_be_logged(destination: Any) -> None:
    assert list(told_credentials(destination, load(destination.name))) == []


@pytest.mark.parametrize("destination", HTTP, ids=lambda destination: slug(destination.name))
def test_try_shows_no_credential(destination: Any) -> None:
    data = load(destination.name)
    secrets = [text for name in data.get("secret", ()) for text in texts_of(data["settings"][name])]
    connection = {"destination": destination.name, "settings": data["settings"]}
    config = Config.model_validate({"projects": {"shop": {}}, "connections": {"a": connection}})
    shown = []
    for case in data["examples"]:
        for hit in case["hits"]:
            (preview,) = try_hit(config, json.dumps({"hitId": "h", **hit_of(hit)}).encode(), None, None, None).previews
            shown.append(repr(preview.sends))
    assert any("'method'" in text for text in shown)
    assert not [secret for secret in secrets for text in shown if re.search(rf"\b{re.escape(secret)}\b", text)]


@pytest.mark.parametrize("destination", list(declared_destinations().values()), ids=lambda d: slug(d.name))
def test_every_destination_has_a_summary_and_a_section_in_the_docs(destination: Any) -> None:
    docs = (EXAMPLES.parent.parent / "docs" / "reference" / "destinations.md").read_text()
    assert f"\n## {destination.name}\n" in docs
    assert destination.summary and destination.delivery_guarantee
    assert destination.sink is None or destination.name == "Files" or destination.documentation.startswith("https://")
    assert all(field.description for field in destination.settings.model_fields.values())
    assert all(field.description for field in destination.options.model_fields.values())


def test_signature_is_accepted_by_the_standard_webhooks_library() -> None:
    destination = declared_destinations()["Webhook"]
    assert isinstance(destination.sink, Http)
    secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2Vjb25kLXNlY3JldC1vZi10aGUtaG9vaw=="]
    settings = destination.settings.model_validate({"url": "https://crm.example/", "secrets": secrets})
    request = destination.sink.request([Event("msg_1", b'{"a": 1}')], settings, time.time())
    for secret in secrets:
        assert StandardWebhook(secret).verify(request.body, dict(request.headers)) == {"a": 1}
    with pytest.raises(WebhookVerificationError):
        StandardWebhook(secrets[0]).verify(b'{"a": 2}', dict(request.headers))


@pytest.mark.parametrize(("length", "fits"), [(23, False), (24, True), (64, True), (65, False)])
def test_secret_has_the_length_of_standard_webhooks(length: int, fits: bool) -> None:
    settings = {"url": "https://crm.example/", "secrets": ["whsec_" + base64.b64encode(bytes(length)).decode()]}
    with nullcontext() if fits else pytest.raises(ValidationError, match="24 to 64 random bytes"):
        declared_destinations()["Webhook"].settings.model_validate(settings)


@pytest.mark.parametrize("identity", ["x" * 40_000, "\u0000" * 256])
def test_long_client_id_keeps_the_request_within_ga4s_limit(identity: str) -> None:
    texts = {f"p{n}": "é" * 100 for n in range(20)}
    user = {"anonymousId": identity}
    hits = [{"hitId": str(n), "event": {"name": "E", "user": user, **texts}} for n in range(50)]
    settings = {"measurement_id": "G-1", "api_secret": "s"}
    requests, early = requests_of(declared_destinations()["Google Analytics"], settings, hits)
    assert all(len(request.body) <= 130_000 for request in requests)
    assert {type(outcome) for outcome in early} == ({Rejected} if len(identity) > 256 else set())


def test_ga4_secret_is_encoded_as_one_parameter() -> None:
    settings = {"measurement_id": "G-1", "api_secret": "a&b+c d#\u00e9"}
    hit = {"hitId": "1", "event": {"name": "E", "user": {"userId": "u"}}}
    (request,), _ = requests_of(declared_destinations()["Google Analytics"], settings, [hit])
    assert parse_qs(urlsplit(request.url).query) == {"measurement_id": ["G-1"], "api_secret": ["a&b+c d#\u00e9"]}
    assert request.url.isascii()


def test_two_spellings_of_a_uuid_are_two_posthog_events() -> None:
    uuid = "7e57d004-2b97-4e7a-b45f-5387367791cd"
    ids = [uuid, uuid.upper(), uuid.replace("-", ""), f"urn:uuid:{uuid}", f"{{{uuid}}}"]
    hits = [{"hitId": hit_id, "event": {"name": "E", "user": {"userId": "u"}}} for hit_id in ids]
    (request,), _ = requests_of(declared_destinations()["PostHog"], {"api_key": "k"}, hits)
    made = [event["uuid"] for event in json.loads(request.body)["batch"]]
    assert made[0] == uuid and len(set(made)) == len(ids)


@pytest.mark.parametrize("name", ['A "B"', "a\nb", "{x}", "1st", "", "a\\"])
def test_name_that_would_break_its_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "destinations").mkdir()
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    (tmp_path / "destinations" / "__init__.py").touch()
    (tmp_path / "docs" / "reference" / "destinations.md").touch()
    with pytest.raises(ConfigurationError, match="cannot be the name of a destination"):
        new_destination(name, tmp_path)


def test_generated_files_of_a_new_destination_pass_their_tests(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    for folder in ("destinations", "docs", "tests/unit", "tests/destinations", "tests/golden"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests" / "__init__.py").touch()
    made = new_destination("Shiny CRM", tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in made] == [
        "destinations/shiny_crm.py",
        "tests/destinations/shiny_crm.yaml",
        "docs/reference/destinations.md",
    ]
    sections = re.findall(r"^## (.+)$", (tmp_path / "docs" / "reference" / "destinations.md").read_text(), re.MULTILINE)
    assert sections == sorted([*declared_destinations(), "Shiny CRM"], key=str.lower)
    with pytest.raises(ConfigurationError, match="already exists"):
        new_destination("Shiny CRM", tmp_path)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "shiny_crm",
        "-p",
        "no:cacheprovider",
        "tests/unit/test_destinations.py",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert " passed" in done.stdout


def test_the_29_semantic_events_are_documented_and_have_ga4_examples() -> None:
    docs = (EXAMPLES.parent.parent / "docs" / "reference" / "semantic-events.md").read_text()
    rows = [line.split("|") for line in docs.splitlines() if line.startswith("| ")][1:]
    documented = {name.strip(): set(re.findall(r"`(\w+)`", ga4)) for _, name, ga4, *_ in rows}
    assert len(documented) == 29
    shown: dict[str, set[str]] = {}
    for case in load("Google Analytics")["examples"]:
        sent = [event["name"] for request in case.get("requests", ()) for event in request["body"]["events"]]
        for hit, name in zip(case["hits"], sent, strict=False):
            sent_name = hit_of(hit)["event"]["name"]
            if case.get("outcomes") is None and sent_name in documented:
                shown.setdefault(sent_name, set()).add(name)
    assert shown == documented
