"""Finds repository files that commands need. A wheel contains copies of them (`force-include` in pyproject.toml)."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_COPIES = _PACKAGE / "packaged_files"


def examples_folder() -> Path:
    """Return the folder with the demo's configuration and its first hit."""
    return _copy_or(_COPIES / "examples", _PACKAGE.parent / "examples")


def destination_examples_folder() -> Path:
    """Return the folder with the examples of destinations, which are named `<slug>.yaml`."""
    return _copy_or(_COPIES / "destinations", _PACKAGE.parent / "tests" / "destinations")


def _copy_or(copy: Path, original: Path) -> Path:
    return copy if copy.is_dir() else original
