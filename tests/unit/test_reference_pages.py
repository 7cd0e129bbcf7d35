"""Pages that are made from the code are up to date, and pages about the code name all that it has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from pipeline.cli import cli
from pipeline.registry import declared_destinations
from pipeline.stages.accept import Code
from pipeline.stages.decide import FilterReason
from tests.reference_pages import FOLDER, PAGES

ROOT = Path(__file__).parent.parent.parent
_MAKERS = {"Rejected", "Skipped", "InvalidHit", "Dead"}
"""What is called with a reason first, which a dead letter or the ledger then bears."""
_REASONS = (FOLDER / "reasons.md").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_is_made_from_the_code_is_up_to_date(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name](), "run `make docs`"


def _reason(node: ast.expr, constants: dict[str, str]) -> str | None:
    """Return the reason that an expression stands for, with `<name>` where a part of it is a value; None if it is a variable."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.JoinedStr):
        parts = (
            f"<{ast.unparse(part.value)}>" if isinstance(part, ast.FormattedValue) else str(ast.literal_eval(part))
            for part in node.values
        )
        return "".join(parts)
    return None


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield name and value of each text constant of a module, its own and those that it imports from the project."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            file = ROOT / f"{node.module.replace('.', '/')}.py"
            names = {alias.name for alias in node.names}
            yield from (
                (name, text) for name, text in (_constants(_tree(file)) if file.exists() else ()) if name in names
            )
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from ((target.id, node.value.value) for target in node.targets if isinstance(target, ast.Name))


@cache
def _reasons_in_the_code() -> set[str]:
    found = set()
    for file in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "destinations").glob("*.py")]:
        tree = _tree(file)
        constants = dict(_constants(tree))
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
        for call in calls:
            if isinstance(call.func, ast.Name) and call.func.id in _MAKERS:
                found.add(_reason(call.args[0], constants))
    return {reason for reason in found if reason}


def test_every_reason_of_a_dead_letter_or_a_skipped_hit_has_its_row() -> None:
    reasons = _reasons_in_the_code()
    assert {"plan_violation", "http_<status>", "no_<kind>_calls", "too_old", "event_without_name"} <= reasons
    assert sorted(reason for reason in reasons if f"| `{reason}` |" not in _REASONS) == []


def test_every_filter_reason_has_its_row() -> None:
    assert [reason.value for reason in FilterReason if f"| `{reason.value}` |" not in _REASONS] == []


def test_every_reason_of_a_row_is_one_of_the_code() -> None:
    known = _reasons_in_the_code() | {reason.value for reason in FilterReason} | {"duplicate", "no_such_connection"}
    assert sorted(set(re.findall(r"^\| `([^`]+)` \|", _REASONS, re.MULTILINE)) - known) == []


def test_every_code_of_a_refused_request_is_in_the_contract() -> None:
    contract = (ROOT / "docs" / "contract.md").read_text()
    assert [code.value for code in Code if f"| `{code.value}`" not in contract] == []


def test_the_readme_names_every_destination() -> None:
    section = (ROOT / "README.md").read_text().split("\n## Destinations\n")[1].split("\n## ")[0]
    assert [name for name in declared_destinations() if f"[{name}]" not in section] == []


_CODE = re.compile(r"```(?:sh|text|ini)\n.*?```|`[^`\n]+`", re.DOTALL)
_COMMAND = re.compile(r"\bhitrouter ((?:[a-z]+-?)+)((?:[ \t]+[^\s`;|#]+)*)")
_GENERATED = FOLDER / "commands.md"


def _commands_in(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield what stands behind `hitrouter` in the code of a page: the command, and the words that follow."""
    for code in _CODE.findall(page.read_text()):
        for command in _COMMAND.finditer(code):
            yield command[1], command[2].split()


def _options_of(command: click.Command, words: list[str]) -> set[str]:
    with click.Context(command) as context:
        if isinstance(command, click.Group) and words and (within := command.get_command(context, words[0])):
            return _options_of(within, words[1:])
        return {option for parameter in command.get_params(context) for option in parameter.opts} | {"--help"}


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page != _GENERATED)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_commands_and_options_of_the_documents_exist(page: Path) -> None:
    faults = []
    with click.Context(cli) as context:
        for name, words in _commands_in(page):
            command = cli.get_command(context, name)
            unknown = [word for word in words if word.startswith("-") and len(word) > 1]
            if command is not None:
                unknown = [word for word in unknown if word.partition("=")[0] not in _options_of(command, words)]
            if command is None or unknown:
                faults.append(f"hitrouter {name} {' '.join(words)}")
    assert faults == []
