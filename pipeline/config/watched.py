"""A configuration file that may change while it is in use: a good change is taken over, a bad one reported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.config.models import Config
from pipeline.errors import ConfigurationError

logger = logging.getLogger("hitrouter.config")


FIXED = ("kafka", "intake", "admin", "dedupe")
"""Sections that a running process can't change."""

_State = tuple[int, int, int]


class Watched:
    """`load` reads and checks the file; the last good version stays `config`. `inputs` are the files that it reads, too."""

    def __init__(
        self, file: Path, load: Callable[[Path], Config], inputs: Callable[[Config], list[Path]] = lambda config: []
    ) -> None:
        self._file = file
        self._load = load
        self._inputs = inputs
        self.config = load(file)
        self.refused: list[str] | None = None
        """The problems of the newest version of the file; None while that is the one in use."""
        self._refused: Config | None = None  # what is left of a bad version
        self._seen = self._state()

    def changed(self) -> Config | None:
        """The new version, once; None when there is none or it is bad."""
        state = self._state()
        if state == self._seen:
            return None
        self._seen = state
        try:
            new = self._load(self._file)
        except ConfigurationError as error:
            logger.error("the changed file is not taken over, the last good version stays:\n%s", error)
            # It may become good by a change of the files that it names, such as a plan that is still to be written.
            self.refused = error.problems
            self._refused = error.rest if isinstance(error.rest, Config) else None
            self._seen = [state[0], *self._state()[1:]]
            return None
        self.refused = self._refused = None
        fixed = {section: getattr(self.config, section) for section in FIXED}
        for section, value in fixed.items():
            if getattr(new, section) != value:
                logger.warning("%s: a change of `%s` takes effect at the next start", self._file, section)
        self.config = new.model_copy(update=fixed)
        self._seen = [state[0], *self._state()[1:]]  # the new version may read other files
        logger.info("%s has changed: version %s is taken over", self._file, self.config.version)
        return self.config

    def _state(self) -> list[_State | None]:
        refused = self._inputs(self._refused) if self._refused is not None else []
        return [_state_of(file) for file in (self._file, *self._inputs(self.config), *refused)]


def _state_of(file: Path) -> _State | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
