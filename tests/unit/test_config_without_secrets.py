"""Tests of loading without secrets, for commands that only read: only secrets can be unset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.try_hit import command as try_command
from pipeline.config import Config
from pipeline.config.checked import load_checked
from pipeline.config.load import unset_variables
from pipeline.delivery.examples import routed
from pipeline.errors import ConfigurationError
from pipeline.operations.explain import skip_reason
from pipeline.registry import read_settings_without_secrets

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "hitrouter.yaml"


def load(tmp_path: Path, text: str, **environment: str) -> Config:
    file = tmp_path / "h.yaml"
    file.write_text(text)
    return load_checked(file, environment, secrets_needed=False)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    return [problem.partition("h.yaml:")[2] for problem in caught.value.problems]


def test_example_can_be_read_without_its_variables() -> None:
    config = load_checked(EXAMPLE, {}, secrets_needed=False)
    assert (len(config.projects), len(config.connections)) == (2, 5)
    with pytest.raises(ConfigurationError, match="SHOP_TOKEN is not set"):
        load_checked(EXAMPLE, {})


# Destinations that validate the form of a setting: a URL, a number, base64, JSON, a database.
SETTINGS = """
connections:
  a: {destination: Webhook, settings: {url: "${A}", secrets: ["${B}"], headers: {authorization: "Bearer ${C}"}}}
  b: {destination: Google Analytics, settings: {measurement_id: "${D}", api_secret: "${E}"}}
  c: {destination: PostgreSQL, settings: {dsn: "${F}"}}
  d: {destination: Google BigQuery, settings: {project: "${G}", dataset: d, credentials: "${H}"}}
  e: {destination: Files, settings: {path: "${I}", region: eu, access_key_id: "${J}", secret_access_key: "${K}"}}
  f: {destination: Meta Conversions API, settings: {pixel_id: "${L}", access_token: "${M}"}}
  g: {destination: Slack, settings: {url: "https://hooks.slack.com/${N}"}}
  h: {destination: ClickHouse, settings: {url: "https://${O}:8443", password: "${P}"}}
"""


def test_unset_variable_in_any_kind_of_setting_stays_as_written(tmp_path: Path) -> None:
    config = load(tmp_path, SETTINGS)
    assert set(config.connections) == set("abcdefgh")
    names = [name for connection in config.connections.values() for name in unset_variables(connection.settings)]
    assert sorted(names) == list("ABCDEFGHIJKLMNOP")
    for connection in config.connections.values():
        read_settings_without_secrets(connection)


def test_set_variable_is_used(tmp_path: Path) -> None:
    config = load(tmp_path, "connections: {a: {destination: Slack, settings: {url: '${A}'}}}", A="https://a.example/")
    assert config.connections["a"].settings == {"url": "https://a.example/"}


def test_tokens_from_different_unset_variables_are_different(tmp_path: Path) -> None:
    config = load(
        tmp_path, 'projects: {a: {tokens: ["${A}"], data_streams: ["${S}"]}, b: {tokens: ["${B}", "sha256:${C}"]}}'
    )
    assert set(config.projects) == {"a", "b"}
    told = problems(tmp_path, 'projects:\n  a: {tokens: ["${A}"]}\n  b: {tokens: ["${A}"]}')
    assert told == ["3: projects.b.tokens.0: a has the same key; each project needs its own"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kafka: {bootstrap_servers: '${K}'}", "kafka.bootstrap_servers: the environment variable K is not set"),
        ("kafka: {client: {sasl.password: '${K}'}}", "kafka.client.sasl.password: the environment variable K is not set"),
        ("admin: {listen: '${H}:8081'}", "admin.listen: the environment variable H is not set"),
        ("connections: {a: {destination: Kafka, when: \"'${C}' == ''\"}}", "connections.a.when: the environment variable C"),
        ("projects: {a: {tokens: ['${A}:x']}}\nkafka: {partitions: 0}", "kafka.partitions: must be greater than"),
        ("connections: {a: {destination: Webhook, settings: {url: '${A}', nope: 1}}}", "settings.nope: unknown key"),
        ("connections: {a: {destination: Webhook, settings: {headers: {a: '${A}'}}}}", "settings.url: is missing"),
        ("connections: {a: {destination: Webhook, settings: {url: '${A', secrets: []}}}", "begins a variable"),
        ("connections: {a: {destination: Wbhook, settings: {url: '${A}'}}}", "did you mean 'Webhook'"),
        ("connections: {a: {destination: Slack, settings: {url: '${A}', text: '{nope}'}}}", "{nope} is not a field of a hit"),
    ],
)  # fmt: skip
def test_other_problems_are_still_reported(tmp_path: Path, text: str, told: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert told in problem


def test_skip_reason_is_known_without_secrets(tmp_path: Path) -> None:
    config = load(tmp_path, SETTINGS)
    hit = routed({"event": {"user": {"userId": "u"}}})
    assert skip_reason(config.connections["b"], hit) == "event_without_name"
    assert skip_reason(config.connections["a"], hit) is None


def test_try_shows_the_decision_and_the_variables_that_the_request_needs(tmp_path: Path) -> None:
    (tmp_path / "h.yaml").write_text(SETTINGS + 'projects: {shop: {tokens: ["${T}"]}}')
    (tmp_path / "hit.json").write_text('{"hitId": "h", "event": {"name": "E", "user": {"userId": "u"}}}')
    done = CliRunner().invoke(try_command, [str(tmp_path / "hit.json"), "-c", str(tmp_path / "h.yaml"), "--json"])
    assert done.exit_code == 0, done.output
    outlooks = {outlook["connection"]: outlook for outlook in json.loads(done.output)["outlooks"]}
    assert all(outlook["reason"] is None for outlook in outlooks.values())
    assert outlooks["a"]["sends"] == {
        "not_shown": "the request needs A and B and C; set any valid value to see the request"
    }
    assert outlooks["c"]["sends"]["row"]["hit_id"] == "h"
