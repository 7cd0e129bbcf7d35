"""The last good version of a configuration file, kept by `up` so that no bad edit ends it, now or at its next start.

A folder holds the texts (with `${NAME}` as it is written, not its value) and copies of the input files, each named by a hash of what
is in it, and two records: `good.json` the last version that passed every check, `start.json` the one that `up` started with. A record
is replaced as a whole, so a reader finds a complete version or none.
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

FIXED = ("kafka", "intake", "admin", "dedupe")
"""Sections that a running process can't change: all roles of one `up` have those that it started with."""
VARIABLE = "HITROUTER_LAST_GOOD"
"""In the environment of the roles that `up` starts: the folder."""
_GOOD, _START, _LOCK = "good.json", "start.json", ".lock"
_FOLDER = "last-good"
_PLACE = re.compile(r"""\b(?:data|folder)["']?\s*:\s*(?:"([^"\n]+)"|'([^'\n]+)'|([^\s,{}#"']+))""")
"""`kafka.data` or `intake.spill.folder`, in a text that need not be YAML any more."""

Load = Callable[[KeptVersion | None], Config]
"""Reads and checks the file, or a kept version of it."""


@dataclass(frozen=True, slots=True)
class _Record:
    """What a record file holds; names are those of files in the folder. `kept_at` is ISO 8601 in UTC."""

    file: str
    kept_at: str
    text: str
    inputs: Mapping[str, str]


class LastGood:
    """The kept versions of `file` below `state`. Written by one process, read by any."""

    def __init__(self, state: Path, file: Path, load: Load) -> None:
        self.file = file
        self._load = load
        self._lock: int | None = None
        path = str(file.absolute())
        name = f"{file.stem}-{blake2b(path.encode(), digest_size=4).hexdigest()}"
        self.folder = state.absolute() / _FOLDER / name

    @classmethod
    def at(cls, folder: Path, file: Path, load: Load) -> LastGood:
        """The one whose folder is known, as a role gets it from `up`."""
        found = cls(folder, file, load)
        found.folder = folder
        return found

    @property
    def kept_at(self) -> str | None:
        """When the last good version was kept; None when there is none."""
        record = self._read(_GOOD)
        return record.kept_at if record is not None else None

    def keep(self, started: bool = False) -> None:
        """Keep the file and its input files as they are now; with `started` its fixed sections are those of all roles from now on.

        Raises ConfigurationError when they are not good, OSError when they can't be kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._begin(started)
        try:
            text = self.file.read_bytes()
            inputs = {path: path.read_bytes() for path in self._load(KeptVersion(text)).input_files}
        except OSError as error:
            raise ConfigurationError([f"{error.filename}: can't be read: {error.strerror}"]) from error
        copies = {path: self._copied(path, content) for path, content in inputs.items()}
        self._load(KeptVersion(text, copies))  # what is kept is what was checked, whoever writes meanwhile
        names = {str(path): copy.name for path, copy in copies.items()}
        self._write(_GOOD, text, names)
        if started:
            self._write(_START, text, {})
        self._clean()

    def start_with_kept(self) -> None:
        """The fixed sections of the last good version are those of all roles from now on. Raises OSError."""
        self._begin(started=True)
        good = self._read(_GOOD)
        if good is not None:
            self._write(_START, self._text(good), {})
            self._clean()

    def _begin(self, started: bool) -> None:
        """Lock the folder for this process: a second `up` must not change what the first one hands out."""
        if self._lock is None:
            lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                raise
            self._lock = lock
        if started:
            (self.folder / _START).unlink(missing_ok=True)  # those of an earlier start are worse than none

    def release(self) -> None:
        """Let another `up` keep versions there, as the end of this process does."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def config(self) -> Config:
        """The last good version. Raises ConfigurationError when there is none, or it is not good any more."""
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
                # It was replaced while it was read.

    def fixed_sections(self) -> dict[str, Any]:
        """The sections that all roles of this `up` share. Raises ConfigurationError."""
        record = self._read(_START)
        if record is None:
            return {}
        started = load_config(self.file, kept=KeptVersion(self._text(record)), secrets_needed=False)
        return {section: getattr(started, section) for section in FIXED}

    def _read(self, name: str) -> _Record | None:
        try:
            record = _Record(**json.loads((self.folder / name).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return record if record.file == str(self.file.absolute()) else None

    def _text(self, record: _Record) -> bytes:
        """Raises ConfigurationError when the text of a record is gone or is not what was kept."""
        file = self.folder / record.text
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigurationError([f"{file}: can't be read: {error.strerror}"]) from error
        if _hash(text) != file.stem:
            raise ConfigurationError([f"{file}: is damaged; mend {self.file} and start `up` again"])
        return text

    def _write(self, name: str, text: bytes, inputs: Mapping[str, str]) -> None:
        kept = f"{_hash(text)}.yaml"
        write_private(self.folder / kept, text)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"file": str(self.file.absolute()), "kept_at": now, "text": kept, "inputs": inputs}
        write_private(self.folder / name, json.dumps(record, indent=2).encode())

    def _copied(self, path: Path, content: bytes) -> Path:
        copy = self.folder / f"{_hash(content)}{path.suffix}"
        if not copy.exists():
            write_private(copy, content)
        return copy

    def _clean(self) -> None:
        """Only what the records name stays: the folder does not grow with the number of edits."""
        records = [record for record in (self._read(_GOOD), self._read(_START)) if record is not None]
        named = {_GOOD, _START, _LOCK, *(name for record in records for name in (record.text, *record.inputs.values()))}
        for name in set(os.listdir(self.folder)) - named:
            (self.folder / name).unlink(missing_ok=True)


def _hash(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def state_folder(config: Config) -> Path:
    """Where `up` keeps what is not hits: beside the data of the embedded Kafka, else beside the spilled hits."""
    embedded = config.kafka.bootstrap_servers == "embedded"
    return (config.kafka.data if embedded else config.intake.spill.folder).parent


def find_last_good(file: Path, load: Load) -> LastGood | None:
    """The last good version of a file that is bad, missing, or not even YAML: looked for where its text names a data folder."""
    try:
        text = file.read_bytes().decode(errors="replace")
    except OSError:
        text = ""
    for state in dict.fromkeys([*_places(text), Path("data")]):
        found = LastGood(state, file, load)
        if found.kept_at is not None:
            return found
    return None


def load_or_kept(file: Path, load: Load, warn: Callable[[str], object]) -> Config:
    """Return the file as it is; while it is refused the version that the roles of its `up` use, and `warn` gets one line.

    Raises ConfigurationError when no version is kept.
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
            # A variable that is not set is a problem of both versions, and is reported once.
            why = [problem for problem in other.problems if problem not in error.problems]
            also = [f"{file}: the last good version is of no use: {'; '.join(why)}"] if why else []
            raise ConfigurationError([first, *others, *also]) from other
        more = f" (and {len(others)} more)" if others else ""
        warn(f"{first}{more}; using the last good version, kept since {kept.kept_at}")
        return config


def _places(text: str) -> Iterator[Path]:
    for match in _PLACE.finditer(text):
        yield Path(os.path.expandvars(next(filter(None, match.groups())))).parent
