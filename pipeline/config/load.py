"""Reading the YAML file: every problem at once, each with file, line, path and the nearest valid name."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.models import Config
from pipeline.config.values import COPIES, FOLDER
from pipeline.errors import ConfigurationError

Path_ = tuple[str | int, ...]
Problem = tuple[Path_, str]
"""Where in the file, and what is wrong there."""
Check = Callable[[Config], Iterable[Problem]]
_ROUNDS = 8
"""How often what is left is validated again; each round takes something away."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SIGN = re.compile(r"(?:^|[\s\[{,])[!*]")
_STANDARD_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A version of the file to read instead of what stands in it now. `copies`: by the path of an input file, its copy."""

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
    """Read `file`, or a `kept` version of it; `${NAME}` is taken from `environment`, and `check` says what models can't know.

    What `advise` finds in a good file is no problem: `warn` gets a line for each, in the form of the problems.

    Without `secrets_needed`, which is for commands that only read, tokens, data streams and settings of connections may name
    variables that are not set: these stay `${NAME}`, and what such a value would be is not checked.
    Raises ConfigurationError that holds all problems as `file:line: path: what is wrong`.
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
        raise ConfigurationError([f"{file}: nested without end; an anchor can't hold itself"]) from error
    config = _validated(reader, data)
    if config is not None:
        for path, message in check(config):
            # Equal tokens are equal whatever their variable holds.
            if not reader.is_bad(path) and not (path[0] == "connections" and reader.is_unset(path)):
                reader.report(path, message)
    if reader.problems or config is None:
        raise ConfigurationError([line for _, line in sorted(reader.problems)], config)
    for path, message in advise(config):
        reader.tell(path, message)
    for _, warning in sorted(reader.problems):
        warn(warning)
    return config


def _quotes_hint(text: str, error: yaml.MarkedYAMLError) -> str:
    """What helps where a text begins with a sign of YAML, such as `events: [!Heartbeat]` or `[*]`."""
    marks = [mark for mark in (error.context_mark, error.problem_mark) if mark is not None]
    lines = text.splitlines()
    signs = any(_SIGN.search(lines[mark.line]) for mark in marks if mark.line < len(lines))
    return "; put a text that begins with ! or * into quotes" if signs else ""


def _validated(reader: _Reader, data: Any) -> Config | None:
    """The configuration; where parts of it are wrong, what is left without them, so that it can be checked, too."""
    context = {FOLDER: reader.file.parent, COPIES: reader.copies}
    for attempt in range(_ROUNDS):
        try:
            return Config.model_validate(data, context=context)
        except ValidationError as error:
            for problem in error.errors():
                path = tuple(problem["loc"])
                # Later ones follow from what was taken out.
                if attempt == 0 and not reader.is_bad(path) and not reader.is_unset(path):
                    reader.report(path, explain(problem, path, Config))
                if isinstance(data, dict):
                    _take_out(data, path, problem["type"] == "missing")
    return None


def _take_out(data: dict[Any, Any], path: Path_, missing: bool) -> None:
    """The smallest part that is wrong, so that all the rest is still checked: a value by its name, a list as a whole.

    Where something is missing, what should hold it goes. A project leaves its name behind: connections name it.
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
    if path[0] == "projects" and len(holders) == 2 and "[key]" not in path:  # projects, its name
        holder[name] = {}
    else:
        del holder[name]


class _Reader:
    """Turns YAML nodes into values and remembers the line of each path."""

    def __init__(
        self, file: Path, environment: Mapping[str, str], secrets_needed: bool, copies: Mapping[Path, Path]
    ) -> None:
        self.file = file
        self.copies = copies
        self.environment = environment
        self._secrets_needed = secrets_needed
        self._unset: set[Path_] = set()
        self.lines: dict[Path_, int] = {(): 1}
        self.problems: list[tuple[int, str]] = []
        self._bad: set[Path_] = set()

    def is_bad(self, path: Path_) -> bool:
        """Is something wrong on the way to `path`, or does it name something that is wrong?"""
        return any(path[: len(bad)] == bad for bad in self._bad)

    def is_unset(self, path: Path_) -> bool:
        """Does the value at `path`, or a setting that it is checked together with, hold a variable that is not set?"""
        return any(path[: len(unset)] == unset or (len(path) == 3 and unset[:3] == path) for unset in self._unset)

    def report(self, path: Path_, message: str) -> None:
        """The value at `path` is wrong: what else is wrong with it follows from that, and is not told."""
        self._bad.add(path)
        self.tell(path, message)

    def tell(self, path: Path_, message: str) -> None:
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

    def value(self, node: yaml.Node, path: Path_) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if not node.tag.startswith(_STANDARD_TAG):
            self.report(path, f"{node.tag} is a tag to YAML; put a text that begins with ! into quotes")
            return None
        if isinstance(node, yaml.MappingNode):
            result: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    here = (*path, "?")
                    self.lines[here] = key_node.start_mark.line + 1
                    self.tell(here, "a name must be a text, not a list or names with values")
                    continue
                key = key_node.value
                here = (*path, key)
                if key in result:
                    self.lines[here] = key_node.start_mark.line + 1
                    self.tell(here, f"{key!r} stands twice; names must be unique")
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
            self.report(path, f"{node.value} is no {node.tag.removeprefix(_STANDARD_TAG)}: {error}; put it into quotes")
            return None
        finally:
            loader.dispose()

    def _expand(self, text: str, path: Path_) -> str:
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
            self.report(path, "${ begins a variable: ${NAME}, of letters, digits and _, without a default")
        return _VARIABLE.sub(replace, text)


def _may_hold_secret(path: Path_) -> bool:
    """Is `path` in one of the parts of the file that no reading command needs?"""
    section, key = path[0], path[2] if len(path) > 2 else ""
    return (section == "projects" and key in ("tokens", "public_keys", "data_streams")) or (
        section == "connections" and key == "settings"
    )


def unset_variables(value: Any) -> list[str]:
    """Return the names of variables that were not set when `value`, a part of a configuration, was loaded without secrets."""
    if isinstance(value, str):
        return _VARIABLE.findall(value)
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for member in members for name in unset_variables(member)]


_WORDS = (
    (r" or instance of \w+$", ""),
    (r"^(Input|String|List|Dictionary) should ", "must "),
    ("be a valid dictionary", "be names with values: `name: value`"),
    ("be a valid list", "be a list: [one, two]"),
    ("Input is not a valid path .*", "must be the name of a file"),
    ("be a valid string", "be a text; put it into quotes"),
    ("be a valid (integer|number|boolean), unable to .*", r"be a valid \1"),
    (r" after validation, not \d+", ""),
)
"""pydantic's words, and those of somebody who writes YAML."""


def explain(problem: Any, path: Path_, model: type[BaseModel]) -> str:
    """What pydantic says about the value at `path` of `model`, in our words; for an unknown key the nearest valid one."""
    kind, details = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{nearest(str(path[-1]), _valid_keys(model, path[:-1]))}"
    if kind == "missing":
        return "is missing; it must be given"
    if kind == "literal_error":
        return f"must be {details['expected']}{_close(problem['input'], details['expected'])}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    for theirs, ours in _WORDS:
        message = re.sub(theirs, ours, message)
    return message[:1].lower() + message[1:]


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid name that is most like `name`, else all of them, as the end of a message."""
    known = sorted(valid)
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are {', '.join(known) or 'none'}"


def _close(given: object, expected: str) -> str:
    close = difflib.get_close_matches(str(given), re.findall(r"'([^']+)'", expected), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _valid_keys(root: type[BaseModel], path: Path_) -> list[str]:
    model: type[BaseModel] | None = root
    steps = list(path)
    while steps and model is not None:
        step = steps.pop(0)
        field = next((f for name, f in model.model_fields.items() if step in (name, f.alias)), None)
        model = _model_in(field.annotation) if field is not None else None
        if field is not None and "dict" in str(field.annotation) and steps:
            steps.pop(0)
    return [field.alias or name for name, field in model.model_fields.items()] if model is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_in(part)
        if found is not None:
            return found
    return None
