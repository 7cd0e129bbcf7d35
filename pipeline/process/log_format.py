"""Chooses the format of log lines: `text` or `json`, by `--log-format` or the environment."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # imported before everything else, see stop.py
    from collections.abc import Mapping, Sequence

OPTION = "--log-format"
VARIABLE = "HITROUTER_LOG_FORMAT"
"""Environment variable of the format. The option sets it, so that the children of `up` use the same format."""
PROCESS_VARIABLE = "HITROUTER_PROCESS"
"""Environment variable with the name of a role that `up` runs, such as `intake-0`; a member of its JSON lines."""
TEXT, JSON = "text", "json"


def log_format_of(environment: Mapping[str, str]) -> str:
    """Return TEXT or JSON. Raises ValueError for an unknown format."""
    value = environment.get(VARIABLE, TEXT)
    if value.lower() not in (TEXT, JSON):
        raise ValueError(f"{value!r} is not a log format: set {OPTION} or {VARIABLE} to {TEXT} or {JSON}")
    return value.lower()


def take_option(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the value of `--log-format`, before or after the command, and the other arguments; None without the option."""
    rest = list(arguments)
    value: str | None = None
    position = 0
    while position < len(rest) and rest[position] != "--":
        name, separator, attached = rest[position].partition("=")
        if name != OPTION or (not separator and position + 1 == len(rest)):
            position += 1
            continue
        value = attached if separator else rest[position + 1]
        del rest[position : position + (1 if separator else 2)]
    return value, rest
