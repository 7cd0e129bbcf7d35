"""The declaration of a destination."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.destination.settings import AnyOptions, NoSettings, Options, Settings
from pipeline.destination.sinks import Sink


@dataclass(frozen=True, slots=True)
class Destination:
    """A kind of destination. `name` and `aliases` are its keys in `integrations`. Without a `sink`, hits are only written to its topic."""

    name: str
    summary: str
    settings: type[Settings] = NoSettings
    options: type[Options] = AnyOptions
    sink: Sink | None = None
    aliases: tuple[str, ...] = ()
    documentation: str = ""
    delivery_guarantee: str = ""
