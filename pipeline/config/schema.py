"""The JSON Schema of the configuration file, for editors: `make schemas` writes it to schemas/config.schema.json."""

from __future__ import annotations

import json
from typing import Any

from pipeline.config.descriptions import DESCRIPTIONS
from pipeline.config.models import Config


def config_schema() -> dict[str, Any]:
    """What an editor needs to complete and check hitrouter.yaml."""
    schema = Config.model_json_schema(by_alias=True)
    for name, section in {Config.__name__: schema, **schema["$defs"]}.items():
        for key, member in section["properties"].items():
            member["description"] = DESCRIPTIONS[f"{name}.{key}"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "hitrouter/config.schema.json", **schema}


if __name__ == "__main__":
    print(json.dumps(config_schema(), indent=2))
