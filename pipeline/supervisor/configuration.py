"""The configuration file of a running `up`: what it starts with, and the last good version for every role that is started again."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pipeline.checked import input_files, load_checked
from pipeline.config import Config, LastGood, Watched, find_last_good, state_folder
from pipeline.config.last_good import Load
from pipeline.config.load import KeptVersion
from pipeline.errors import ConfigurationError

logger = logging.getLogger("hitrouter.up")


@dataclass(slots=True)
class OpenConfiguration:
    """`config` is what all roles start with; `last_good` is None where no folder can be written."""

    file: Path
    config: Config
    watched: Watched
    last_good: LastGood | None
    _failed: bool = False

    def keep_changes(self) -> None:
        """Keep the file if it has changed and is good. What can't be written, as on a full disk, is tried again at each call."""
        changed = self.watched.changed() is not None
        if self.last_good is None or not (changed or self._failed):
            return
        try:
            self.last_good.keep()
            self._failed = False
        except ConfigurationError:
            self._failed = False  # bad again since it was read; `watched` reports it
        except OSError as error:
            if not self._failed:
                logger.warning("the new version is not kept yet, will retry: file=%s error=%s", self.file, error)
            self._failed = True


def open_configuration(file: Path) -> OpenConfiguration:
    """Read and check `file`; where it is bad, its last good version is used instead, and the log says so.

    Raises ConfigurationError when there is none.
    """
    load = partial(_load, file)
    kept = find_last_good(file, load)
    watched = Watched(file, load_checked, input_files, kept)
    if watched.refused is not None:
        assert kept is not None
        logger.error(
            "every role runs on the last good version until the file is mended: file=%s changed_at=%s kept_at=%s folder=%s",
            *(file, _changed_at(file), kept.kept_at, kept.folder),
        )
        try:
            kept.start_with_kept()
        except OSError as error:
            logger.warning("roles that are started again follow the file's own kafka section: %s", error)
        return OpenConfiguration(file, watched.config, watched, kept)
    try:
        return OpenConfiguration(file, watched.config, watched, _kept(state_folder(watched.config), file, load))
    except ConfigurationError:  # changed since it was read
        return open_configuration(file)


def _load(file: Path, kept: KeptVersion | None) -> Config:
    return load_checked(file, os.environ, kept)


def _kept(state: Path, file: Path, load: Load) -> LastGood | None:
    """The file kept in `state`, or elsewhere if nothing can be written there. Raises ConfigurationError when it is not good."""
    last_good = LastGood(state, file, load)
    try:
        last_good.keep(started=True)
        return last_good
    except OSError as error:
        logger.warning(
            "the last good version of the file will not survive a restart of `up`: folder=%s error=%s",
            *(last_good.folder, error.strerror),
        )
    try:
        elsewhere = LastGood(Path(tempfile.mkdtemp(prefix="hitrouter-")), file, load)
        elsewhere.keep(started=True)
        return elsewhere
    except OSError as error:
        logger.error("no last good version is kept, a bad edit will stop roles that are started again: %s", error)
        return None


def _changed_at(file: Path) -> str:
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except OSError:
        return "unknown"
