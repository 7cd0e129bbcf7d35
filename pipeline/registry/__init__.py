"""Finds destinations and enrichments: each file of their package with a declaration. There is no other list of them."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import TypeVar

from pydantic import ValidationError

import destinations
from pipeline import enrichments
from pipeline.config.models import ConnectionConfig
from pipeline.destination import Destination, Settings
from pipeline.enrichments.contract import Enrichment

_Declared = TypeVar("_Declared")


@cache
def declared_destinations() -> dict[str, Destination]:
    """Return all destinations by name: the `destination` of each file of `destinations/`."""
    return {found.name: found for found in _declarations(destinations, "destination", Destination)}


@cache
def declared_enrichments() -> dict[str, Enrichment]:
    """Return all enrichments by name: the `enrichment` of each file of `pipeline/enrichments/`."""
    return {found.name: found for found in _declarations(enrichments, "enrichment", Enrichment)}


def read_settings(connection: ConnectionConfig) -> tuple[Destination, Settings]:
    """Return the destination of a validated connection, and its settings."""
    destination = declared_destinations()[connection.destination]
    return destination, destination.settings.model_validate(connection.settings)


def read_settings_without_secrets(connection: ConnectionConfig) -> tuple[Destination, Settings]:
    """Return the same for a connection that was loaded without secrets; invalid settings are returned unvalidated.

    Use them only to inspect hits, never to send one.
    """
    try:
        return read_settings(connection)
    except ValidationError:
        destination = declared_destinations()[connection.destination]
        return destination, destination.settings.model_construct(**connection.settings)


def _declarations(package: ModuleType, name: str, kind: type[_Declared]) -> list[_Declared]:
    modules = (importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__))
    return [found for module in modules if isinstance(found := getattr(module, name, None), kind)]
