"""Fetches the jars of Apache Kafka, locked by version and SHA-256, once into a cache folder; later starts work offline.

`HITROUTER_CACHE` sets the cache folder (default: `hitrouter` under XDG_CACHE_HOME or ~/.cache); `HITROUTER_MAVEN_REPOSITORY`
names a mirror of Maven Central.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pipeline.errors import BrokerUnavailable

_CHUNK_BYTES = 1 << 16
_ATTEMPTS = 3
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of jars.lock."""

    path: str
    sha256: str
    size_bytes: int

    @property
    def name(self) -> str:
        """The file's name in the cache folder."""
        return self.path.rpartition("/")[2]


def locked_jars() -> list[Jar]:
    """Return all jars of the lock file; their `path` is relative to a Maven repository."""
    jars = []
    for line in resources.files(__package__).joinpath("jars.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            coordinates, digest, size = line.split()
            group, artifact, version = coordinates.split(":")
            path = f"{group.replace('.', '/')}/{artifact}/{version}/{artifact}-{version}.jar"
            jars.append(Jar(path, digest.removeprefix("sha256:"), int(size)))
    return jars


def cache_folder() -> Path:
    """Return the folder of the cache."""
    named = os.environ.get("HITROUTER_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hitrouter"


def fetch_jars() -> list[Path]:
    """Return the paths of all locked jars; fetches those that are missing or damaged.

    The folder may also hold jars of other versions. Raises BrokerUnavailable if a jar cannot be fetched, or if the folder's
    name cannot be used in a class path.
    """
    folder = (cache_folder() / "kafka-jars").absolute()  # Java runs in another working directory
    if os.pathsep in str(folder):
        raise BrokerUnavailable(
            f"{folder} cannot hold Kafka: Java splits its class path at {os.pathsep!r}; set HITROUTER_CACHE to another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    jars = locked_jars()
    missing = [jar for jar in jars if not _is_whole(folder / jar.name, jar)]
    if missing:
        _download(missing, folder)
    return [folder / jar.name for jar in jars]


def _is_whole(file: Path, jar: Jar) -> bool:
    try:
        if file.stat().st_size != jar.size_bytes:
            return False
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == jar.sha256
    except OSError:
        return False


def _repository() -> str:
    mirror = os.environ.get("HITROUTER_MAVEN_REPOSITORY")
    if mirror:
        return mirror.rstrip("/")
    from maven_artifact.downloader import Downloader

    central: str = Downloader().resolver.base
    return central


def _download(jars: list[Jar], folder: Path) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    repository = _repository()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with (
        Progress(*columns, console=Console(file=sys.stderr)) as progress,
        ThreadPoolExecutor(6) as pool,
    ):
        task = progress.add_task("fetching Apache Kafka", total=sum(jar.size_bytes for jar in jars))
        for jar, _ in zip(jars, pool.map(lambda jar: _fetch(repository, jar, folder), jars), strict=True):
            progress.advance(task, jar.size_bytes)


def _fetch(repository: str, jar: Jar, folder: Path) -> None:
    url = f"{repository}/{jar.path}"
    for attempt in range(_ATTEMPTS):
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".fetching-", delete=False) as target:
            partial = Path(target.name)
            try:
                with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
                    while chunk := answer.read(_CHUNK_BYTES):
                        target.write(chunk)
                target.close()
                if not _is_whole(partial, jar):
                    raise BrokerUnavailable(
                        f"{url} is not the locked file (SHA-256 differs); check the repository or proxy"
                    )
                partial.replace(folder / jar.name)
                return
            except (OSError, urllib.error.URLError) as error:
                if attempt + 1 == _ATTEMPTS:
                    raise BrokerUnavailable(
                        f"{url} cannot be fetched into {folder}: {error}; check the network and the disk, "
                        "or set HITROUTER_MAVEN_REPOSITORY to a mirror"
                    ) from error
            finally:
                partial.unlink(missing_ok=True)
