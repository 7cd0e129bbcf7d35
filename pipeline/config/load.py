"""Reading the YAML file: every problem at once, each with file, line, path and the nearest valid name."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.models import Config
from pipeline.errors import ConfigurationError

Path_ = tuple[str | int, ...]
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_config(file: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read `file`; `${NAME}` is taken from `environment`.

    Raises ConfigurationError that holds all problems as `file:line: path: what is wrong`.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError([f"{file}: can't be read: {error.strerror}; name the file with -c"]) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError([f"{file}: is not UTF-8 at byte {error.start}"]) from error
    reader = _Reader(file, environment)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError([f"{file}:{line}: not YAML: {error.problem or error.context}"]) from error
    data = reader.value(root, ()) if root is not None else {}
    config: Config | None = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        for problem in error.errors():
            reader.report(tuple(problem["loc"]), _explain(problem, tuple(problem["loc"])))
    if config is not None:
        for name, connection in config.connections.items():
            for position, project in enumerate(connection.projects or ()):
                if project not in config.projects:
                    where: Path_ = ("connections", name, "projects", position)
                    reader.report(where, f"no such project {project!r}{_nearest(project, list(config.projects))}")
    if reader.problems or config is None:
        raise ConfigurationError([line for _, line in sorted(reader.problems)])
    return config


class _Reader:
    """Turns YAML nodes into values and remembers the line of each path."""

    def __init__(self, file: Path, environment: Mapping[str, str]) -> None:
        self.file = file
        self.environment = environment
        self.lines: dict[Path_, int] = {(): 1}
        self.problems: list[tuple[int, str]] = []

    def report(self, path: Path_, message: str) -> None:
        known = path
        while known not in self.lines:
            known = known[:-1]
        line = self.lines[known]
        self.problems.append((line, f"{self.file}:{line}: {'.'.join(map(str, path)) or 'file'}: {message}"))

    def value(self, node: yaml.Node, path: Path_) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            result: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = key_node.value
                here = (*path, key)
                if key in result:
                    self.lines[here] = key_node.start_mark.line + 1
                    self.report(here, f"{key!r} stands twice; names must be unique")
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
        finally:
            loader.dispose()

    def _expand(self, text: str, path: Path_) -> str:
        def replace(match: re.Match[str]) -> str:
            value = self.environment.get(match[1])
            if value is None:
                self.report(path, f"the environment variable {match[1]} is not set; set it and start again")
                return "unset"
            return value

        return _VARIABLE.sub(replace, text)


def _explain(problem: Any, path: Path_) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key{_nearest(str(path[-1]), _valid_keys(path[:-1]))}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are {', '.join(sorted(valid)) or 'none'}"


def _valid_keys(path: Path_) -> list[str]:
    model: type[BaseModel] | None = Config
    steps = list(path)
    while steps and model is not None:
        field = model.model_fields.get(str(steps.pop(0)))
        model = _model_in(field.annotation) if field is not None else None
        if field is not None and "dict" in str(field.annotation) and steps:
            steps.pop(0)
    return list(model.model_fields) if model is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_in(part)
        if found is not None:
            return found
    return None
