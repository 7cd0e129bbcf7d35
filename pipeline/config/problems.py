"""Words a problem of the configuration file for its author: pydantic's errors, and the nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]
"""Path in the file, and what is wrong there."""
_REWORDINGS = (
    (r" or instance of \w+$", ""),
    (r"^(Input|String|List|Dictionary) should ", "must "),
    ("be a valid dictionary", "be names with values: `name: value`"),
    ("be a valid list", "be a list: [one, two]"),
    ("Input is not a valid path .*", "must be the name of a file"),
    ("be a valid string", "be a text; put it into quotes"),
    ("be a valid (integer|number|boolean), unable to .*", r"be a valid \1"),
    (r" after validation, not \d+", ""),
)
"""Patterns in pydantic's messages, and wording for an author of YAML."""


def describe_problem(problem: Any, path: KeyPath, model: type[BaseModel]) -> str:
    """Return the message for a pydantic error at `path` of `model`; for an unknown key with the nearest valid one."""
    kind, details = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{nearest(str(path[-1]), _valid_keys(model, path[:-1]))}"
    if kind == "missing":
        return "is missing; it must be given"
    if kind == "literal_error":
        return f"must be {details['expected']}{_close(problem['input'], details['expected'])}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    for pattern, wording in _REWORDINGS:
        message = re.sub(pattern, wording, message)
    return message[:1].lower() + message[1:]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the end of a message: the valid name that is most like `name`, or else all valid names."""
    known = sorted(valid)
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are {', '.join(known) or 'none'}"


def _close(given: object, expected: str) -> str:
    close = difflib.get_close_matches(str(given), re.findall(r"'([^']+)'", expected), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _valid_keys(root: type[BaseModel], path: KeyPath) -> list[str]:
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
