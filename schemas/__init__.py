"""Reads the published schemas, which are files in this folder."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def read_schema(name: str) -> dict[str, Any]:
    """Return the schema in the file `name`, such as `ledger_entry.avsc`, as parsed JSON."""
    schema: dict[str, Any] = json.loads(resources.files(__name__).joinpath(name).read_text(encoding="utf-8"))
    return schema
