"""Formats log records as JSON, one object per line, for `--log-format json`.

The template of a log call is an event with fields, `"connection paused: connection=%s retry_in_seconds=%.1f"`. Its keys are
paired with the arguments of the call. A template of another form, such as that of a library, becomes one event as text.
"""

from __future__ import annotations

import json
import logging
import math
import re
from datetime import UTC, datetime
from functools import lru_cache

_FIELDS = re.compile(r"([^:]+): ([a-z][a-z0-9_]*=.*)", re.DOTALL)
_NEXT_FIELD = re.compile(r" (?=[a-z][a-z0-9_]*=)")
_PLACEHOLDER = re.compile(r"%(?:%|[-+ #0]*\d*(?:\.(\d+))?([a-zA-Z]))")
_MEMBERS = ("time", "level", "logger", "process", "event", "exception", "stack")

Part = tuple[str, str, int]
"""Key, template of the value, and its number of placeholders."""


class JsonFormatter(logging.Formatter):
    """Formats records with the members time, level, logger, process (if not ""), event, and the fields of the log call.

    The output is ASCII, so neither a terminal escape nor a line break in a value reaches the terminal or splits the line.
    """

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return `record` as a JSON object without line breaks."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {"time": time, "level": record.levelname, "logger": record.name}
        if self._process:
            line["process"] = self._process
        line |= _fields(record)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return `event` and the fields of a log call."""
    try:
        args = record.args if isinstance(record.args, tuple) else ()
        parts = _parse(record.msg) if args and isinstance(record.msg, str) else ()
        if not parts or sum(count for _, _, count in parts) != len(args):
            return {"event": record.getMessage()}
        fields: dict[str, object] = {}
        for key, template, count in parts:
            fields[key], args = _value(template, args[:count]), args[count:]
        return fields
    except Exception:  # wrong arguments, or an argument without a text; logging must not fail
        return {"event": f"{record.msg} (the arguments of this log call do not fit)"}


@lru_cache(maxsize=1024)
def _parse(template: str) -> tuple[Part, ...]:
    """Return the parts of a template, `event` first; empty if it is not an event with fields, each with a placeholder."""
    match = _FIELDS.fullmatch(template)
    if match is None:
        return ()
    pairs = [("event", match[1]), *(tuple(part.split("=", 1)) for part in _NEXT_FIELD.split(match[2]))]
    parts = tuple((key, value, sum(found[0] != "%%" for found in _PLACEHOLDER.finditer(value))) for key, value in pairs)
    keys = [key for key, _, _ in parts[1:]]
    is_valid = len(set(keys)) == len(keys) and not set(keys) & set(_MEMBERS) and all(count for _, _, count in parts[1:])
    return parts if is_valid else ()


def _value(template: str, args: tuple[object, ...]) -> object:
    """Return the value of a part: the argument itself if it is a number, a boolean or None, otherwise text."""
    match = _PLACEHOLDER.fullmatch(template)
    if match is None or match[2] == "r" or len(args) != 1:
        return template % args
    value = args[0]
    if isinstance(value, float) and math.isfinite(value):
        return round(value, int(match[1])) if match[1] else value
    return value if isinstance(value, int) or value is None else str(value)
