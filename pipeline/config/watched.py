"""Follows changes of a configuration file: applies a good version and reports a bad one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.config.last_good import FIXED_SECTIONS, LastGood
from pipeline.config.models import Config
from pipeline.errors import ConfigurationError

logger = logging.getLogger(__name__)

_State = tuple[int, int, int]


class Watched:
    """A configuration file in use; `config` is its last good version.

    `load` reads and checks the file; `inputs` returns the other files that a configuration reads. With `last_good`, a file
    that is bad at the start is replaced by its last good version instead of being an error. `fixed` returns sections that
    replace those of the file, since all roles of one `up` must use the same topics, also after an edit.
    """

    def __init__(
        self,
        file: Path,
        load: Callable[[Path], Config],
        inputs: Callable[[Config], list[Path]] = lambda config: [],
        last_good: LastGood | None = None,
        fixed: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        self._file = file
        self._load = load
        self._inputs = inputs
        self.refused: list[str] | None = None
        """Problems of the newest version of the file, or None if it is in use."""
        self._valid_part: Config | None = None  # of a bad version
        before = _state_of(file)
        try:
            config = load(file)
        except ConfigurationError as error:
            if last_good is None or last_good.kept_at is None:
                raise
            try:
                config = last_good.config()
            except ConfigurationError as other:
                why = "; ".join(other.problems)
                raise ConfigurationError(
                    [*error.problems, f"{file}: the last good version cannot be used: {why}"]
                ) from other
            self._refuse(error)
            logger.warning("starting with the last good version: file=%s kept_at=%s", file, last_good.kept_at)
        sections = fixed()
        self._report_fixed(config, sections)
        self.config = config.model_copy(update=sections)
        self._seen = [before, *self._state()[1:]]

    def changed(self) -> Config | None:
        """Return a new good version once; None if the file has not changed or is bad."""
        state = self._state()
        if state == self._seen:
            return None
        self._seen = state
        try:
            new = self._load(self._file)
        except ConfigurationError as error:
            self._refuse(error)
            # A change of the files that it names can make it good, such as a plan that does not exist yet.
            self._seen = [state[0], *self._state()[1:]]
            return None
        self.refused = self._valid_part = None
        fixed = {section: getattr(self.config, section) for section in FIXED_SECTIONS}
        self._report_fixed(new, fixed)
        self.config = new.model_copy(update=fixed)
        self._seen = [state[0], *self._state()[1:]]  # the new version can read other files
        logger.info("configuration changed: file=%s version=%s", self._file, self.config.version)
        return self.config

    def _refuse(self, error: ConfigurationError) -> None:
        self.refused = error.problems
        self._valid_part = error.rest if isinstance(error.rest, Config) else None
        logger.error(
            "configuration refused, using the last good version: file=%s problems=%d", self._file, len(error.problems)
        )
        for problem in error.problems:
            logger.error("configuration problem: error=%s", problem)

    def _report_fixed(self, new: Config, fixed: Mapping[str, object]) -> None:
        for section, value in fixed.items():
            if getattr(new, section) != value:
                logger.warning("change needs a restart: file=%s section=%s", self._file, section)

    def _state(self) -> list[_State | None]:
        others = self._inputs(self._valid_part) if self._valid_part is not None else []
        return [_state_of(file) for file in (self._file, *self._inputs(self.config), *others)]


def _state_of(file: Path) -> _State | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
