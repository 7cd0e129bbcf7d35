"""Opens the configuration file of `up`, and keeps its last good version for roles that are restarted."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pipeline.config import Config, LastGood, Watched, find_last_good, state_folder
from pipeline.config.checked import input_files, load_checked
from pipeline.config.last_good import Load
from pipeline.config.load import KeptVersion
from pipeline.errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class OpenConfiguration:
    """The configuration of a running `up`. All roles start with `config`; `last_good` is None if no folder is writable."""

    file: Path
    config: Config
    watched: Watched
    last_good: LastGood | None
    _failed: bool = False

    def keep_changes(self) -> None:
        """Keep the file if it has changed and is good. Retries at each call if it cannot be written, as on a full disk."""
        changed = self.watched.changed() is not None
        if self.last_good is None or not (changed or self._failed):
            return
        try:
            self.last_good.keep()
            self._failed = False
        except ConfigurationError:
            self._failed = False  # the file became bad after it was read; `watched` reports it
        except OSError as error:
            if not self._failed:
                logger.warning("new version not kept yet, will retry: file=%s error=%s", self.file, error)
            self._failed = True


def open_configuration(file: Path) -> OpenConfiguration:
    """Read and check `file`. If it is bad, log that and use its last good version.

    Raises ConfigurationError if there is none.
    """
    load = partial(_load, file)
    kept = find_last_good(file, load)
    watched = Watched(file, load_checked, input_files, kept)
    if watched.refused is not None:
        assert kept is not None
        logger.error(
            "all roles use the last good version until the file is corrected: file=%s changed_at=%s kept_at=%s folder=%s",
            *(file, _changed_at(file), kept.kept_at, kept.folder),
        )
        try:
            kept.start_with_kept()
        except OSError as error:
            logger.warning(
                "restarted roles use the kafka section of the file, not of the last good version: file=%s error=%s",
                file,
                error,
            )
        return OpenConfiguration(file, watched.config, watched, kept)
    try:
        return OpenConfiguration(file, watched.config, watched, _kept(state_folder(watched.config), file, load))
    except ConfigurationError:  # the file changed after it was read
        return open_configuration(file)


def _load(file: Path, kept: KeptVersion | None) -> Config:
    return load_checked(file, os.environ, kept)


def _kept(state: Path, file: Path, load: Load) -> LastGood | None:
    """Keep the file in `state`, or in a temporary folder if `state` is not writable. Raises ConfigurationError if the file is bad."""
    last_good = LastGood(state, file, load)
    try:
        last_good.keep(started=True)
        return last_good
    except OSError as error:
        logger.warning(
            "last good version of the file would be lost by a restart of hitrouter up: folder=%s error=%s",
            *(last_good.folder, error.strerror),
        )
    try:
        temporary = LastGood(Path(tempfile.mkdtemp(prefix="hitrouter-")), file, load)
        temporary.keep(started=True)
        return temporary
    except OSError as error:
        logger.error("last good version not kept, roles cannot restart after a bad edit: file=%s error=%s", file, error)
        return None


def _changed_at(file: Path) -> str:
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except OSError:
        return "unknown"
