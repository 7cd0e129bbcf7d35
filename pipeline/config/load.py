"""Reads the YAML file and reports every problem at once, each with file, line, path and the nearest valid name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config.models import Config
from pipeline.config.problems import KeyPath, Problem, describe_problem
from pipeline.config.values import COPIES, FOLDER
from pipeline.errors import ConfigurationError

Check = Callable[[Config], Iterable[Problem]]
_MAX_ROUNDS = 8
"""Maximum number of validations; each removes invalid parts and checks the rest."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SIGN = re.compile(r"(?:^|[\s\[{,])[!*]")
_STANDARD_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A saved version of the file to read instead of the current one. `copies` maps the path of an input file to its copy."""

    text: bytes
    copies: Mapping[Path, Path] = field(default_factory=dict)


def load_config(
    file: Path,
    environment: Mapping[str, str] = os.environ,
    check: Check = lambda config: (),
    kept: KeptVersion | None = None,
    *,
    secrets_needed: bool = True,
    advise: Check = lambda config: (),
    warn: Callable[[str], object] = lambda line: None,
) -> Config:
    """Return the configuration in `file`, or in its `kept` version. `environment` gives the values of `${NAME}`.

    `check` yields problems that the models cannot detect. `advise` yields warnings about a valid file, which `warn` gets
    as lines in the form of the problems.

    Commands that only read pass `secrets_needed=False`: in tokens, data streams and settings of connections, variables
    that are not set then stay `${NAME}` and are not checked.
    Raises ConfigurationError, which holds all problems as `file:line: path: what is wrong`.
    """
    try:
        text = (file.read_bytes() if kept is None else kept.text).decode()
    except OSError as error:
        raise ConfigurationError([f"{file}: can't be read: {error.strerror}; name the file with -c"]) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError([f"{file}: is not UTF-8 at byte {error.start}"]) from error
    reader = _Reader(file, environment, secrets_needed, kept.copies if kept is not None else {})
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = reader.value(root, ()) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        said = f"{error.problem or error.context}{_quotes_hint(text, error)}"
        raise ConfigurationError([f"{file}:{line}: not YAML: {said}"]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigurationError([f"{file}:{line}: not YAML: the character {error.character:#06x}"]) from error
    except RecursionError as error:
        raise ConfigurationError([f"{file}: nested without end; an anchor must not contain itself"]) from error
    config = _validated(reader, data)
    if config is not None:
        for path, message in check(config):
            # Not in connections: tokens that name the same unset variable are equal whatever its value is.
            if not reader.is_bad(path) and not (path[0] == "connections" and reader.is_unset(path)):
                reader.report(path, message)
    if reader.problems or config is None:
        raise ConfigurationError([line for _, line in sorted(reader.problems)], config)
    for path, message in advise(config):
        reader.add(path, message)
    for _, warning in sorted(reader.problems):
        warn(warning)
    return config


def _quotes_hint(text: str, error: yaml.MarkedYAMLError) -> str:
    """Return a hint if a text begins with a special character of YAML, such as `events: [!Heartbeat]` or `[*]`."""
    marks = [mark for mark in (error.context_mark, error.problem_mark) if mark is not None]
    lines = text.splitlines()
    signs = any(_SIGN.search(lines[mark.line]) for mark in marks if mark.line < len(lines))
    return "; put a text that begins with ! or * into quotes" if signs else ""


def _validated(reader: _Reader, data: Any) -> Config | None:
    """Return the configuration without its invalid parts, so that the rest can be checked; None if nothing valid is left."""
    context = {FOLDER: reader.file.parent, COPIES: reader.copies}
    for attempt in range(_MAX_ROUNDS):
        try:
            return Config.model_validate(data, context=context)
        except ValidationError as error:
            for problem in error.errors():
                path = tuple(problem["loc"])
                # Later problems result from the removals.
                if attempt == 0 and not reader.is_bad(path) and not reader.is_unset(path):
                    reader.report(path, describe_problem(problem, path, Config))
                if isinstance(data, dict):
                    _remove_invalid(data, path, problem["type"] == "missing")
    return None


def _remove_invalid(data: dict[Any, Any], path: KeyPath, missing: bool) -> None:
    """Remove the smallest invalid part, so that the rest is still checked: one value of a mapping, a list as a whole.

    If a key is missing, remove the mapping that should have it. The name of a project stays, since connections refer to it.
    """
    holders: list[tuple[dict[Any, Any], Any]] = []
    value: Any = data
    for step in path:
        if not isinstance(value, dict) or step not in value:
            break
        holders.append((value, step))
        value = value[step]
    if missing and len(holders) == len(path):
        holders.pop()
    if not holders:
        return
    holder, name = holders[-1]
    if path[0] == "projects" and len(holders) == 2 and "[key]" not in path:  # a whole project
        holder[name] = {}
    else:
        del holder[name]


class _Reader:
    """Converts YAML nodes to values and records the line of each path."""

    def __init__(
        self, file: Path, environment: Mapping[str, str], secrets_needed: bool, copies: Mapping[Path, Path]
    ) -> None:
        self.file = file
        self.copies = copies
        self.environment = environment
        self._secrets_needed = secrets_needed
        self._unset: set[KeyPath] = set()
        self.lines: dict[KeyPath, int] = {(): 1}
        self.problems: list[tuple[int, str]] = []
        self._bad: set[KeyPath] = set()

    def is_bad(self, path: KeyPath) -> bool:
        """Return whether `path`, or a part of the file that contains it, has a problem."""
        return any(path[: len(bad)] == bad for bad in self._bad)

    def is_unset(self, path: KeyPath) -> bool:
        """Return whether the value at `path`, or a setting that is checked together with it, has an unset variable."""
        return any(path[: len(unset)] == unset or (len(path) == 3 and unset[:3] == path) for unset in self._unset)

    def report(self, path: KeyPath, message: str) -> None:
        """Add a problem and mark the value at `path` as invalid, so that its further problems are not reported."""
        self._bad.add(path)
        self.add(path, message)

    def add(self, path: KeyPath, message: str) -> None:
        """Add a problem or warning at `path`, with the line of the nearest part of the path that the file has."""
        known = path
        while known not in self.lines:
            known = known[:-1]
        line = self.lines[known]
        self.problems.append(
            (
                line,
                f"{self.file}:{line}: {'.'.join(str(step) for step in path if step != '[key]') or 'file'}: {message}",
            )
        )

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if not node.tag.startswith(_STANDARD_TAG):
            self.report(path, f"YAML reads {node.tag} as a tag; put a text that begins with ! into quotes")
            return None
        if isinstance(node, yaml.MappingNode):
            result: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    here = (*path, "?")
                    self.lines[here] = key_node.start_mark.line + 1
                    self.add(here, "a name must be a text, not a list or names with values")
                    continue
                key = key_node.value
                here = (*path, key)
                if key in result:
                    self.lines[here] = key_node.start_mark.line + 1
                    self.add(here, f"{key!r} occurs twice; names must be unique")
                    continue
                self.lines[here] = key_node.start_mark.line + 1
                result[key] = self.value(value_node, here)
            return result
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, position)) for position, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and isinstance(node.value, str) and "${" in node.value:
            return self._expand(node.value, path)
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node, deep=True)
        except ValueError as error:  # such as 2026-99-99, which looks like a date
            kind = node.tag.removeprefix(_STANDARD_TAG)
            self.report(path, f"{node.value} is not a valid {kind}: {error}; put it into quotes")
            return None
        finally:
            loader.dispose()

    def _expand(self, text: str, path: KeyPath) -> str:
        def replace(match: re.Match[str]) -> str:
            value = self.environment.get(match[1])
            if value is not None:
                return value
            if not self._secrets_needed and _may_hold_secret(path):
                self._unset.add(path)
                return match[0]
            self.report(path, f"the environment variable {match[1]} is not set; set it and start again")
            return "unset"

        if "${" in _VARIABLE.sub("", text):
            self.report(path, "${ begins a variable: write ${NAME}, with letters, digits and _ and without a default")
        return _VARIABLE.sub(replace, text)


def _may_hold_secret(path: KeyPath) -> bool:
    """Return whether `path` is in a part of the file that commands which only read do not need."""
    section, key = path[0], path[2] if len(path) > 2 else ""
    return (section == "projects" and key in ("tokens", "public_keys", "data_streams")) or (
        section == "connections" and key == "settings"
    )


def unset_variables(value: Any) -> list[str]:
    """Return the names of the unset variables in `value`, a part of a configuration loaded without secrets."""
    if isinstance(value, str):
        return _VARIABLE.findall(value)
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for member in members for name in unset_variables(member)]
