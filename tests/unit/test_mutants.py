"""Each mutant of the proof replaces something that exists; otherwise it would change nothing, and the proof would prove nothing."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import mutant

TREE = ast.parse(Path(mutant.__file__).read_text())


IMPORTED = {
    alias.asname or alias.name: node.module
    for node in ast.walk(TREE)
    if isinstance(node, ast.ImportFrom) and node.module is not None
    for alias in node.names
}


def replaced() -> Iterator[str]:
    """Yield the attributes of imported classes and modules that mutants assign, such as `Poller._rewind`."""
    for node in ast.walk(TREE):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and ast.unparse(target).partition(".")[0] in IMPORTED:
                    yield ast.unparse(target)


@pytest.mark.parametrize("attribute", sorted(set(replaced())))
def test_a_mutant_replaces_what_exists(attribute: str) -> None:
    name, *path = attribute.split(".")
    found: Any = getattr(importlib.import_module(IMPORTED[name]), name)
    for part in path:
        assert hasattr(found, part), f"{attribute} does not exist"
        found = getattr(found, part)
