"""`make test-pythons`: the unit tests and the demo on every supported Python of this machine that is newer than the one of `make setup`.

Each gets a virtual environment of the locked packages, `.venv-3.N`. A version that the machine lacks is named and skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from pipeline.kafka.embedded.broker import free_port

SUPPORTED = range(11, 15)
"""Minor versions of Python 3; `requires-python` and the classifiers of pyproject.toml say the same."""
_REPOSITORY = Path(__file__).parent.parent
_PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")


def interpreter(minor: int) -> Path | None:
    """A Python 3.`minor` of this machine that runs: on the PATH, or installed by pyenv."""
    name = f"python3.{minor}"
    for candidate in filter(None, (shutil.which(name), *sorted(_PYENV.glob(f"versions/3.{minor}.*/bin/{name}")))):
        asked = subprocess.run(
            [str(candidate), "-c", "import sys, venv; print(*sys.version_info[:2])"], capture_output=True, check=False
        )
        if asked.stdout.split() == [b"3", str(minor).encode()]:
            return Path(candidate)
    return None


def environment(minor: int, python: Path) -> Path:
    """The interpreter of the virtual environment, made or brought up to date."""
    folder = _REPOSITORY / f".venv-3.{minor}"
    inside = folder / "bin" / "python"
    if not inside.exists():
        _run(str(python), "-m", "venv", "--without-pip", str(folder))
    uv = str(Path(sys.executable).with_name("uv"))
    _run(uv, "pip", "install", "--quiet", "--python", str(inside), "--require-hashes", "-r", "requirements.lock")
    _run(uv, "pip", "install", "--quiet", "--python", str(inside), "--no-deps", "--no-build-isolation", "-e", ".")
    return inside


def problems(python: Path) -> Iterator[str]:
    """What does not work with the interpreter."""
    tests = subprocess.run([str(python), "-m", "pytest", "-q", "-n", "2", "tests/unit"], cwd=_REPOSITORY, check=False)
    if tests.returncode:
        yield f"the unit tests end with {tests.returncode}"
    with tempfile.TemporaryDirectory(prefix="hitrouter-demo-") as name:
        demo = subprocess.run(
            [str(python), "-m", "pipeline", "demo", "--once", "-c", str(_example(Path(name)))], cwd=name, check=False
        )
        if demo.returncode:
            yield f"the demo ends with {demo.returncode}"


def _example(folder: Path) -> Path:
    settings = yaml.safe_load((_REPOSITORY / "examples" / "hitrouter.yaml").read_text())
    for section in ("kafka", "intake", "admin"):
        settings[section]["listen"] = f"127.0.0.1:{free_port()}"
    file = folder / "hitrouter.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def _run(*command: str) -> None:
    subprocess.run(command, cwd=_REPOSITORY, check=True)


def main() -> int:
    """Exit code 0 when everything that was found works, also when nothing was found."""
    failed = False
    for minor in SUPPORTED:
        if minor <= sys.version_info.minor:
            continue
        python = interpreter(minor)
        if python is None:
            print(f"Python 3.{minor}: SKIPPED, this machine has none", flush=True)
            continue
        found = list(problems(environment(minor, python)))
        failed |= bool(found)
        print(f"Python 3.{minor} ({python}): {'; '.join(found) or 'unit tests and demo pass'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
