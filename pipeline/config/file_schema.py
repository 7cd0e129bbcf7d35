"""Generates the JSON Schema of the configuration file for editors. `make schemas` writes it to schemas/config.schema.json."""

from __future__ import annotations

import json
from typing import Any

from pipeline.config.descriptions import DESCRIPTIONS
from pipeline.config.models import Config, ConnectionConfig
from pipeline.destination import Destination
from pipeline.registry import declared_destinations

_DEFINITIONS = "#/$defs/{model}"


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of hitrouter.yaml, including the settings of each destination."""
    schema = Config.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    for name, section in {Config.__name__: schema, **definitions}.items():
        for key, member in section["properties"].items():
            member["description"] = DESCRIPTIONS[f"{name}.{key}"]
    kinds = sorted(declared_destinations().values(), key=lambda kind: kind.name)
    connection = definitions[ConnectionConfig.__name__]
    # An alias is a key in a hit's `integrations`; the file does not accept it, so it only appears in the description.
    connection["properties"]["destination"] |= {
        "enum": [kind.name for kind in kinds],
        "enumDescriptions": [_description(kind) for kind in kinds],
    }
    connection["allOf"] = [_settings(kind, definitions) for kind in kinds]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "hitrouter/config.schema.json", **schema}


def _description(kind: Destination) -> str:
    aliases = " or ".join(kind.aliases)
    return kind.summary + (f" In a hit's integrations also: {aliases}." if aliases else "")


def _settings(kind: Destination, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the condition for the settings of connections with this destination; adds their model to `definitions`."""
    model = kind.settings.model_json_schema(ref_template=_DEFINITIONS)
    definitions |= model.pop("$defs", {})
    definitions[kind.settings.__name__] = model
    then: dict[str, Any] = {"properties": {"settings": {"$ref": _DEFINITIONS.format(model=kind.settings.__name__)}}}
    if model.get("required"):
        then["required"] = ["settings"]
    return {"if": {"properties": {"destination": {"const": kind.name}}, "required": ["destination"]}, "then": then}


if __name__ == "__main__":
    print(json.dumps(config_schema(), indent=2))
