"""A configuration file that may change while it is in use: a good change is taken over, a bad one reported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.config.models import Config
from pipeline.errors import ConfigurationError

logger = logging.getLogger("hitrouter.config")


class Watched:
    """`load` reads and checks the file; the last good version stays `config`."""

    def __init__(self, file: Path, load: Callable[[Path], Config]) -> None:
        self._file = file
        self._load = load
        self._seen = self._state()
        self.config = load(file)

    def changed(self) -> Config | None:
        """The new version, once; None when there is none or it is bad."""
        state = self._state()
        if state == self._seen:
            return None
        self._seen = state
        try:
            self.config = self._load(self._file)
        except ConfigurationError as error:
            logger.error("the changed file is not taken over, the last good version stays:\n%s", error)
            return None
        logger.info("%s has changed and is taken over", self._file)
        return self.config

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
