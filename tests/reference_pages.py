"""The pages of docs/reference that are made from the code: `make docs` writes them, and a test compares them.

Run as `python -m tests.reference_pages`. Each function returns one page as Markdown.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from itertools import cycle
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from pipeline import telemetry
from pipeline.cli import cli
from pipeline.config import values
from pipeline.config.descriptions import DESCRIPTIONS
from pipeline.config.models import Config
from pipeline.destination import Destination
from pipeline.registry import declared_destinations

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
_MADE = "<!-- Made by `make docs` from {source}.\nEdit that, not this page. -->"
_NAMED_TYPES: dict[str, Any] = {
    "duration": values.Seconds,
    "rate": values.Rate,
    "host:port": values.Address,
    "network": values.Network,
    "origin": values.Origin,
    "token": values.Token,
    "name": values.Name,
    "address": values.HttpUrl,
    "address of the intake": values.PublicUrl,
    "property": values.Property,
}
"""What the page calls a type of pipeline/config/values.py; other types go by the type that they annotate."""
_PLAIN_TYPES = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", Any: "any value"}
_UNIT_SECONDS = {"d": 86_400, "h": 3_600, "m": 60}
_LINE_CHARACTERS = 79


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headers = list(headers)
    return "\n".join([_row(headers), "|---" * len(headers) + "|", *map(_row, rows)])


def _row(cells: Iterable[str]) -> str:
    return "".join(f"| {_escaped(cell)} " if cell else "| " for cell in cells) + "|"


def _escaped(text: str) -> str:
    """Return `text` with the characters escaped that Markdown reads outside of code."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if inside else re.sub(r"([*<])", r"\\\1", part) for part, inside in zip(parts, cycle((0, 1))))


def _page(title: str, source: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", _MADE.format(source=source), *parts]) + "\n"


def _metadata(hint: Any) -> tuple[Any, ...]:
    return hint.__metadata__ if get_origin(hint) is Annotated else ()


def _type_name(hint: Any) -> str:
    """Return the words for a type, such as `list of origin`; limits of numbers follow in brackets."""
    metadata = _metadata(hint)
    for name, known in _NAMED_TYPES.items():
        if metadata[: len(known.__metadata__)] == known.__metadata__:
            return name
    if metadata:
        return _type_name(get_args(hint)[0]) + _bounds(metadata)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_name(argument) for argument in arguments if argument is not type(None))
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"{_type_name(arguments[1])} by name"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return "section"
    return _PLAIN_TYPES[hint]


def _bounds(metadata: Iterable[Any]) -> str:
    limits = [part for field in metadata for part in getattr(field, "metadata", ())]
    lowest = [_number(limit.ge) for limit in limits if hasattr(limit, "ge")]
    highest = [_number(limit.le) for limit in limits if hasattr(limit, "le")]
    if lowest and highest:
        return f", {lowest[0]} to {highest[0]}"
    return f", at least {lowest[0]}" if lowest else ""


def _default(hint: Any, field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return ""
    if value is None or value == "" or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    if isinstance(value, float) and _type_name(hint) == "duration":
        return f"`{_duration(value)}`"
    return f"`{_number(value).replace(',', '')}`" if isinstance(value, float) else f"`{value}`"


def _number(value: Any) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _duration(seconds: float) -> str:
    """Return seconds as people write them: `24h` stays a number of hours, `7d` of days."""
    for unit, length in _UNIT_SECONDS.items():
        if seconds % length == 0 and (unit != "d" or seconds > length):
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def _models(hint: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections within a type."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
    for argument in get_args(hint):
        yield from _models(argument)


def _sections(model: type[BaseModel], path: str) -> Iterator[str]:
    """Yield the table of a section, then those of the sections in it."""
    rows, within = [], []
    hints = get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        key = field.alias or name
        hint = hints[name]
        meaning = DESCRIPTIONS[f"{model.__name__}.{key}"]
        rows.append([f"`{key}`", _type_name(hint), _default(hint, field), meaning])
        place = f"{path}.{key}" if path else key
        within += [(found, place + (".NAME" if get_origin(hint) is dict else "")) for found in _models(hint)]
    heading = f"## `{path}`" if path else "## Sections"
    yield f"{heading}\n\n{_table(['Key', 'Type', 'Default', 'Meaning'], rows)}"
    for found, place in within:
        yield from _sections(found, place)


_VALUES = _table(
    ["Type", "Is written as"],
    [
        ["duration", "a number and a unit: `500ms`, `30s`, `15m`, `24h`, `7d`"],
        ["rate", "a number per unit: `100/s`, `30/m`, `1000/h`"],
        ["host:port", "`127.0.0.1:8080`, `[::1]:8080`; port 0: the system chooses one"],
        ["network", "an address or a network, such as `10.0.0.0/8`"],
        ["origin", "`https://shop.example`, `https://*.shop.example`, or `*`"],
        ["token", "the token, or `sha256:` and the 64 hex digits of its hash"],
        ["name", "1 to 64 lower-case letters, digits and hyphens"],
        ["address", "begins with `http://` or `https://`"],
    ],
)


def configuration_page() -> str:
    """Return the page of the configuration file: each section of the models as a table."""
    return _page(
        "Configuration",
        "`pipeline/config/models.py` and `pipeline/config/descriptions.py`",
        "The configuration is one YAML file: `hitrouter.yaml`, unless `-c` names another file. `${NAME}` is\n"
        "replaced by the environment variable of this name. hitrouter refuses an unknown key, a wrong type\n"
        "or an unset variable, and shows the line. It also refuses white space at the start or end of a\n"
        "key, an id, a setting or a Kafka property, such as the new line of a mounted secret. The message\n"
        "does not show the value.\n"
        "`hitrouter validate` shows every problem at once. `hitrouter schema config` prints the JSON Schema\n"
        "for editors. [Changes of the file](processes.md#changes-of-the-file) lists the sections that take\n"
        "effect without a restart.",
        _VALUES,
        *_sections(Config, ""),
        *_destination_sections(sorted(declared_destinations().values(), key=lambda kind: kind.name.lower())),
    )


def _destination_sections(kinds: Iterable[Destination]) -> Iterator[str]:
    yield (
        "## `connections.NAME.settings`\n\n"
        "Settings and options by destination. A sender writes options for one hit, in its `integrations`.\n"
        "[Destinations](destinations.md) lists the rules of each vendor."
    )
    for kind in kinds:
        parts = [f"### {kind.name}", textwrap.fill(kind.summary, 98)]
        for title, model in (("Setting", kind.settings), ("Option", kind.options)):
            hints = get_type_hints(model, include_extras=True)
            rows = [
                [f"`{key}`", _type_name(hints[key]), _default(hints[key], field), field.description or ""]
                for key, field in model.model_fields.items()
            ]
            if rows:
                parts.append(_table([title, "Type", "Default", "Meaning"], rows))
        yield "\n\n".join(parts)


def commands_page() -> str:
    """Return the page of the command line: the help of each command."""
    with click.Context(cli, info_name="hitrouter") as context:
        names = cli.list_commands(context)
        shown = [(name, cli.get_command(context, name)) for name in names]
    return _page(
        "Commands",
        "the help texts in `pipeline/cli`",
        "Exit codes and environment variables are in [Processes](processes.md#exit-codes).",
        *(part for name, command in shown if command for part in _help(f"hitrouter {name}", command)),
    )


def _help(path: str, command: click.Command) -> Iterator[str]:
    command = copy(command)
    command._help_option = None  # click remembers it from the first context, which may be that of another test
    context = click.Context(
        command, info_name=path, terminal_width=_LINE_CHARACTERS, help_option_names=["-h", "--help"]
    )
    yield f"## `{path}`\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            within = command.get_command(context, name)
            if within is not None:
                yield from _help(f"{path} {name}", within)


def metrics_page() -> str:
    """Return the page of the metrics: name, type, labels, meaning."""
    found: dict[str, MetricWrapperBase] = {}
    for module in [telemetry.__name__, *(f"{telemetry.__name__}.{info.name}" for info in _modules())]:
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, MetricWrapperBase):
                (described,) = value.describe()
                suffix = "_total" if described.type == "counter" else ""
                found[described.name + suffix] = value
    return _page(
        "Metrics",
        "the definitions in `pipeline/telemetry`",
        "Each worker serves its own metrics at `/metrics` of its [admin port](processes.md#ports), in the\n"
        "format of Prometheus. [Monitor and alert](../how-to/monitor-and-alert.md) lists the metrics to\n"
        "watch. A counter starts from 0 when its process starts.",
        _table(["Metric", "Type", "Labels", "Meaning"], _metric_rows(found)),
    )


def _modules() -> Iterable[pkgutil.ModuleInfo]:
    return pkgutil.iter_modules(telemetry.__path__)


def _metric_rows(found: Mapping[str, MetricWrapperBase]) -> Iterator[list[str]]:
    for name, metric in sorted(found.items()):
        (described,) = metric.describe()
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        yield [f"`{name}`", described.type, labels, described.documentation]


PAGES: Mapping[str, Callable[[], str]] = {
    "configuration.md": configuration_page,
    "commands.md": commands_page,
    "metrics.md": metrics_page,
}
"""By file in docs/reference the function that makes it."""


if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())
