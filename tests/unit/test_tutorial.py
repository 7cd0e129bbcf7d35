"""What docs/tutorial.md shows of the commands that need no Kafka is what they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.errors import ConfigurationError

_PAGE = (Path(__file__).parent.parent.parent / "docs" / "tutorial.md").read_text()
_BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", _PAGE, re.MULTILINE | re.DOTALL)
_MISTAKEN = next(text for _, text in _BLOCKS if "Webhok" in text)
_CONFIGURATION = next(text for kind, text in _BLOCKS if kind == "yaml")
_HIT = next(text for kind, text in _BLOCKS if kind == "json")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOP_TOKEN", "my-secret-token")


def test_the_tutorial_shows_what_validate_finds() -> None:
    Path("hitrouter.yaml").write_text(_MISTAKEN)
    result = CliRunner().invoke(cli, ["validate"])
    assert isinstance(result.exception, ConfigurationError)
    shown = next(text for kind, text in _BLOCKS if kind == "text" and text.startswith("hitrouter.yaml:"))
    assert [str(problem) for problem in result.exception.problems] == shown.splitlines()


def test_the_file_of_the_tutorial_is_valid() -> None:
    Path("hitrouter.yaml").write_text(_CONFIGURATION)
    result = CliRunner().invoke(cli, ["validate"])
    assert f"$ hitrouter validate\n{result.output}" in [text for _, text in _BLOCKS]


def test_the_tutorial_shows_what_becomes_of_its_hit() -> None:
    Path("hitrouter.yaml").write_text(_CONFIGURATION)
    Path("hit.json").write_text(_HIT)
    result = CliRunner().invoke(cli, ["try", "hit.json"])
    assert result.exit_code == 0, result.output
    shown = next(text for kind, text in _BLOCKS if kind == "text" and "crm (Webhook)" in text)
    parts = [part for part in re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE) if part]
    assert len(parts) == 2
    assert [part for part in parts if part not in result.output] == []
