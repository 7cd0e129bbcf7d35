"""The registry of destinations: every file of the top-level package `destinations` that holds a `destination`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path

from pydantic import ValidationError

import destinations
from pipeline.config.models import Config, ConnectionConfig
from pipeline.destination import Destination, Settings
from pipeline.errors import ConfigurationError


@cache
def declared_destinations() -> dict[str, Destination]:
    """All destinations by name."""
    found = {}
    for module in pkgutil.iter_modules(destinations.__path__):
        destination = getattr(importlib.import_module(f"destinations.{module.name}"), "destination", None)
        if isinstance(destination, Destination):
            found[destination.name] = destination
    return found


def read_settings(connection: ConnectionConfig) -> tuple[Destination, Settings]:
    """The destination of a checked connection, and its settings."""
    destination = declared_destinations()[connection.destination]
    return destination, destination.settings.model_validate(connection.settings)


def check_connections(config: Config, file: Path | None = None) -> None:
    """Raises ConfigurationError that lists every unknown destination and every wrong setting."""
    known = declared_destinations()
    where = f"{file}: " if file else ""
    problems = []
    for name, connection in config.connections.items():
        path = f"{where}connections.{name}"
        destination = known.get(connection.destination)
        if destination is None:
            close = difflib.get_close_matches(connection.destination, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
            problems.append(f"{path}.destination: no destination {connection.destination!r}; {hint}")
            continue
        try:
            destination.settings.model_validate(connection.settings)
        except ValidationError as error:
            for problem in error.errors():
                key = ".".join(map(str, problem["loc"]))
                valid = ", ".join(destination.settings.model_fields) or "none"
                unknown = f"unknown key; {destination.name} knows {valid}"
                message = unknown if problem["type"] == "extra_forbidden" else problem["msg"]
                problems.append(f"{path}.settings.{key}: {message}")
    if problems:
        raise ConfigurationError(problems)
