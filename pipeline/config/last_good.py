"""Keeps the last good version of a configuration file, so that `up` survives a bad edit, also across its restart.

The folder of a file holds its texts (`${NAME}` stays as written) and copies of its input files, each named by the hash of its
content. Two records name them: `good.json` the last version that passed every check, `start.json` the version that `up` started
with. A record is replaced atomically, so readers see a complete version or none.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pipeline.config.load import KeptVersion, load_config
from pipeline.config.models import Config
from pipeline.errors import ConfigurationError
from pipeline.process.durable import write_private

FIXED_SECTIONS = ("kafka", "intake", "admin", "dedupe")
"""Sections that need a restart: all roles of one `up` use those that it started with."""
VARIABLE = "HITROUTER_LAST_GOOD"
"""Environment variable that gives the folder to the roles of `up`."""
_GOOD, _START, _LOCK = "good.json", "start.json", ".lock"
_FOLDER = "last-good"
_PLACE = re.compile(r"""\b(?:data|folder)["']?\s*:\s*(?:"([^"\n]+)"|'([^'\n]+)'|([^\s,{}#"']+))""")
"""Finds `kafka.data` or `intake.spill.folder` in a text that can be invalid YAML."""

Load = Callable[[KeptVersion | None], Config]
"""Loads and checks the file, or a kept version of it."""


@dataclass(frozen=True, slots=True)
class _Record:
    """Content of a record. `text` and the values of `inputs` are names of files in the folder; `kept_at` is ISO 8601 in UTC."""

    file: str
    kept_at: str
    text: str
    inputs: Mapping[str, str]


class LastGood:
    """The kept versions of `file`, in a folder below `state`. One process writes them, any process reads them."""

    def __init__(self, state: Path, file: Path, load: Load) -> None:
        self.file = file
        self._load = load
        self._lock: int | None = None
        path = str(file.absolute())
        name = f"{file.stem}-{blake2b(path.encode(), digest_size=4).hexdigest()}"
        self.folder = state.absolute() / _FOLDER / name

    @classmethod
    def in_folder(cls, folder: Path, file: Path, load: Load) -> LastGood:
        """Return the kept versions in `folder`, the path that a role gets from `up`."""
        found = cls(folder, file, load)
        found.folder = folder
        return found

    @property
    def kept_at(self) -> str | None:
        """When the last good version was kept, or None without one."""
        record = self._read(_GOOD)
        return record.kept_at if record is not None else None

    def keep(self, started: bool = False) -> None:
        """Keep the current file and its input files. With `started`, all roles use its fixed sections from now on.

        Raises ConfigurationError if the file is bad, OSError if it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_folder(started)
        try:
            text = self.file.read_bytes()
            inputs = {path: path.read_bytes() for path in self._load(KeptVersion(text)).input_files}
        except OSError as error:
            raise ConfigurationError([f"{error.filename}: can't be read: {error.strerror}"]) from error
        copies = {path: self._copy(path, content) for path, content in inputs.items()}
        self._load(KeptVersion(text, copies))  # checks the copies themselves: the originals can change meanwhile
        names = {str(path): copy.name for path, copy in copies.items()}
        self._write(_GOOD, text, names)
        if started:
            self._write(_START, text, {})
        self._remove_unused()

    def start_with_kept(self) -> None:
        """Let all roles use the fixed sections of the last good version from now on. Raises OSError."""
        self._lock_folder(started=True)
        good = self._read(_GOOD)
        if good is not None:
            self._write(_START, self._text(good), {})
            self._remove_unused()

    def _lock_folder(self, started: bool) -> None:
        """Lock the folder for this process: a second `up` must not change what the roles of the first one read."""
        if self._lock is None:
            lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                raise
            self._lock = lock
        if started:
            (self.folder / _START).unlink(missing_ok=True)  # wrong sections of an earlier start are worse than none

    def release(self) -> None:
        """Unlock the folder for another `up`. The end of the process also unlocks it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def config(self) -> Config:
        """Return the last good version. Raises ConfigurationError if there is none, or if it is now bad."""
        while True:
            record = self._read(_GOOD)
            if record is None:
                raise ConfigurationError([f"{self.file}: there is no last good version in {self.folder}"])
            try:
                copies = {Path(path): self.folder / name for path, name in record.inputs.items()}
                return self._load(KeptVersion(self._text(record), copies))
            except ConfigurationError:
                if self._read(_GOOD) == record:
                    raise
                # The record was replaced meanwhile: read the new one.

    def fixed_sections(self) -> dict[str, Any]:
        """Return the sections that all roles of this `up` share. Raises ConfigurationError."""
        record = self._read(_START)
        if record is None:
            return {}
        started = load_config(self.file, kept=KeptVersion(self._text(record)), secrets_needed=False)
        return {section: getattr(started, section) for section in FIXED_SECTIONS}

    def _read(self, name: str) -> _Record | None:
        try:
            record = _Record(**json.loads((self.folder / name).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return record if record.file == str(self.file.absolute()) else None

    def _text(self, record: _Record) -> bytes:
        """Return the text of a record. Raises ConfigurationError if it is missing or damaged."""
        file = self.folder / record.text
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigurationError([f"{file}: can't be read: {error.strerror}"]) from error
        if _hash(text) != file.stem:
            raise ConfigurationError([f"{file}: is damaged; correct {self.file} and start `up` again"])
        return text

    def _write(self, name: str, text: bytes, inputs: Mapping[str, str]) -> None:
        kept = f"{_hash(text)}.yaml"
        write_private(self.folder / kept, text)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"file": str(self.file.absolute()), "kept_at": now, "text": kept, "inputs": inputs}
        write_private(self.folder / name, json.dumps(record, indent=2).encode())

    def _copy(self, path: Path, content: bytes) -> Path:
        copy = self.folder / f"{_hash(content)}{path.suffix}"
        if not copy.exists():
            write_private(copy, content)
        return copy

    def _remove_unused(self) -> None:
        """Remove the files that no record names, so that the folder does not grow with the number of edits."""
        records = [record for record in (self._read(_GOOD), self._read(_START)) if record is not None]
        named = {_GOOD, _START, _LOCK, *(name for record in records for name in (record.text, *record.inputs.values()))}
        for name in set(os.listdir(self.folder)) - named:
            (self.folder / name).unlink(missing_ok=True)


def _hash(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def state_folder(config: Config) -> Path:
    """Return the folder for state of `up`: the parent of the embedded Kafka's data, otherwise of the spilled hits."""
    embedded = config.kafka.bootstrap_servers == "embedded"
    return (config.kafka.data if embedded else config.intake.spill.folder).parent


def find_last_good(file: Path, load: Load) -> LastGood | None:
    """Return the kept versions of a file that is bad, missing, or invalid YAML; None if there are none.

    Searches the data folders that its text names, then ./data.
    """
    try:
        text = file.read_bytes().decode(errors="replace")
    except OSError:
        text = ""
    for state in dict.fromkeys([*_state_folders(text), Path("data")]):
        found = LastGood(state, file, load)
        if found.kept_at is not None:
            return found
    return None


def load_or_last_good(file: Path, load: Load, warn: Callable[[str], object]) -> Config:
    """Return the configuration in the file. If it is bad, warn, and return the version that the roles of its `up` use.

    Raises ConfigurationError if no version is kept.
    """
    try:
        return load(None)
    except ConfigurationError as error:
        kept = find_last_good(file, load)
        if kept is None:
            raise
        first, *others = error.problems
        try:
            config = kept.config().model_copy(update=kept.fixed_sections())
        except ConfigurationError as other:
            # An unset variable is a problem of both versions; report it once.
            why = [problem for problem in other.problems if problem not in error.problems]
            also = [f"{file}: the last good version cannot be used: {'; '.join(why)}"] if why else []
            raise ConfigurationError([first, *others, *also]) from other
        more = f" (and {len(others)} more)" if others else ""
        warn(f"{first}{more}; using the last good version, kept since {kept.kept_at}")
        return config


def _state_folders(text: str) -> Iterator[Path]:
    for match in _PLACE.finditer(text):
        yield Path(os.path.expandvars(next(filter(None, match.groups())))).parent
