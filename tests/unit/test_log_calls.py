"""Checks the form of every log call of the product: an event, then `key=value` fields (docs/reference/logs.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PIPELINE = Path(__file__).parents[2] / "pipeline"
_METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
_PLACEHOLDER = r"%(?:\.\d+)?[a-z]"
_FORM = re.compile(rf"[^%=:]*[^%=: ](?:: [a-z][a-z0-9_]*={_PLACEHOLDER}(?: [a-z][a-z0-9_]*={_PLACEHOLDER})*)?")
_MEMBERS = {"time", "level", "logger", "process", "event", "exception", "stack"}
"""Members of each line of `--log-format json`."""


def problems_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and problem of each log call in `source`."""
    tree = ast.parse(source)
    loggers = {"logger"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and "getLogger" in ast.dump(node.value):
            loggers |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        receiver = node.func.value
        name = receiver.id if isinstance(receiver, ast.Name) else getattr(receiver, "attr", "")
        if node.func.attr in _METHODS and name in loggers:
            found = _problem(node.args[1:] if node.func.attr == "log" else node.args)
            if found:
                yield node.lineno, found


def _problem(arguments: list[ast.expr]) -> str:
    template = arguments[0]
    if not isinstance(template, ast.Constant) or not isinstance(template.value, str):
        return "the template is not a constant text"
    if not _FORM.fullmatch(template.value):
        return f"{template.value!r} is not `event: key=%s key=%d`"
    keys = re.findall(r"(\w+)=%", template.value)
    if len(set(keys)) < len(keys) or _MEMBERS & set(keys):
        return f"{template.value!r} has a key twice, or one of {sorted(_MEMBERS)}"
    if len(keys) != len(arguments) - 1 and not any(isinstance(argument, ast.Starred) for argument in arguments):
        return f"{template.value!r} has {len(keys)} fields and {len(arguments) - 1} arguments"
    return ""


def test_each_log_call_is_an_event_with_fields() -> None:
    found = [
        f"{file.relative_to(PIPELINE.parent)}:{line}: {problem}"
        for file in sorted(PIPELINE.rglob("*.py"))
        for line, problem in problems_of(file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "call",
    [
        'logger.info(f"x {y}")',
        'logger.info("version %s is used", version)',
        'logger.info("x: key=%s, other=%s", 1, 2)',
        'logger.info("x: key=%s/%s", 1, 2)',
        'logger.info("x: key=%s")',
        'logger.info("x: key=%s key=%s", 1, 2)',
        'logger.info("x: level=%s", 1)',
        'logger.log(10, "x %s", 1)',
        'self.logger.warning("x\\n%s", 1)',
        '_other = logging.getLogger("x")\n_other.error("a: %s", 1)',
    ],
)
def test_other_forms_are_detected(call: str) -> None:
    assert len(list(problems_of(call))) == 1


def test_event_with_fields_is_accepted() -> None:
    assert list(problems_of('logger.info("connection paused: connection=%s retry_in_seconds=%.1f", a, b)')) == []
    assert list(problems_of('logger.exception("admin endpoint failed")\nmath.log("x %s", 1)')) == []
