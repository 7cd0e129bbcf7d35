"""A configuration file that may change while it is in use: a good change is taken over, a bad one reported."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.config.last_good import FIXED, LastGood
from pipeline.config.models import Config
from pipeline.errors import ConfigurationError

logger = logging.getLogger("hitrouter.config")

_State = tuple[int, int, int]


class Watched:
    """`load` reads and checks the file; the last good version stays `config`. `inputs` are the files that it reads, too.

    With `last_good` a file that is bad at the start is no reason to end. `fixed` returns sections to have instead of the file's: all
    roles of one `up` write to the same topics, whenever they are started.
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
        """The problems of the newest version of the file; None while that is the one in use."""
        self._rest: Config | None = None  # what is left of a bad version
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
                    [*error.problems, f"{file}: the last good version is of no use: {why}"]
                ) from other
            self._refuse(error, f"starting with the last good version, kept at {last_good.kept_at}")
        sections = fixed()
        self._report_fixed(config, sections)
        self.config = config.model_copy(update=sections)
        self._seen = [before, *self._state()[1:]]

    def changed(self) -> Config | None:
        """The new version, once; None when there is none or it is bad."""
        state = self._state()
        if state == self._seen:
            return None
        self._seen = state
        try:
            new = self._load(self._file)
        except ConfigurationError as error:
            self._refuse(error, "the last good version stays")
            # It may become good by a change of the files that it names, such as a plan that is still to be written.
            self._seen = [state[0], *self._state()[1:]]
            return None
        self.refused = self._rest = None
        fixed = {section: getattr(self.config, section) for section in FIXED}
        self._report_fixed(new, fixed)
        self.config = new.model_copy(update=fixed)
        self._seen = [state[0], *self._state()[1:]]  # the new version may read other files
        logger.info("%s has changed: version %s is taken over", self._file, self.config.version)
        return self.config

    def _refuse(self, error: ConfigurationError, consequence: str) -> None:
        self.refused = error.problems
        self._rest = error.rest if isinstance(error.rest, Config) else None
        logger.error("configuration refused, %s: file=%s\n%s", consequence, self._file, error)

    def _report_fixed(self, new: Config, fixed: Mapping[str, object]) -> None:
        for section, value in fixed.items():
            if getattr(new, section) != value:
                logger.warning("%s: a change of `%s` takes effect at the next start", self._file, section)

    def _state(self) -> list[_State | None]:
        rest = self._inputs(self._rest) if self._rest is not None else []
        return [_state_of(file) for file in (self._file, *self._inputs(self.config), *rest)]


def _state_of(file: Path) -> _State | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
