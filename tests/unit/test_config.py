"""The configuration file: every problem at once, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.delivery.declared import check_connections, declared_destinations
from pipeline.errors import ConfigurationError

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "hitrouter.yaml"


def problems(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "h.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        check_connections(load_config(file, {}), file)
    return [problem.removeprefix(str(file)) for problem in caught.value.problems]


def test_the_example_is_good() -> None:
    config = load_config(EXAMPLE, {"SHOP_TOKEN": "a", "BLOG_TOKEN": "b", "WEBHOOK_URL": "http://127.0.0.1/x"})
    check_connections(config, EXAMPLE)
    assert (len(config.projects), len(config.connections)) == (2, 5)
    assert config.dedupe.window == 86_400


def test_all_problems_are_told_at_once_with_line_and_nearest_name(tmp_path: Path) -> None:
    text = "kafka:\n  partitons: 4\nprojects:\n  shop: {tokens: ['${NOPE}']}\nconnections:\n  a: {destination: 7}\n"
    found = problems(tmp_path, text)
    assert len(found) == 3
    assert found[0].startswith(":2: kafka.partitons: unknown key; did you mean 'partitions'")
    assert "NOPE" in found[1] and found[1].startswith(":4:")
    assert found[2].startswith(":6: connections.a.destination:")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dedupe: {window: 24x}", "a duration is"),
        ("projects: {Shop: {}}", "lower-case"),
        ("connections: {a: {destination: Kafka, projects: [shpo]}}\nprojects: {shop: {}}", "did you mean 'shop'"),
        ("connections:\n  a: {destination: Kafka}\n  a: {destination: Kafka}", "stands twice"),
        ("a: [", "not YAML"),
        ("connections: {a: {destination: Webhok}}", "did you mean 'Webhook'"),
        ("connections: {a: {destination: Webhook, settings: {url: 'ftp://x'}}}", "settings.url"),
        ("connections: {a: {destination: Files, settings: {path: x, formt: y}}}", "unknown key"),
    ],
)
def test_a_wrong_file_is_refused_with_what_to_do(tmp_path: Path, text: str, part: str) -> None:
    found = problems(tmp_path, text)
    assert any(part in problem for problem in found), found


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read"):
        load_config(tmp_path / "none.yaml")


def test_every_file_in_destinations_declares_one() -> None:
    files = {file.stem for file in (EXAMPLE.parent.parent / "destinations").glob("*.py")} - {"__init__"}
    assert len(declared_destinations()) == len(files)
