"""`hitrouter schema`."""

from __future__ import annotations

import json

import click

_AVRO = {"ledger-entry": "ledger_entry.avsc", "raw-hit": "raw_hit.avsc"}


@click.command("schema")
@click.argument("name", type=click.Choice(["config", *_AVRO]))
def command(name: str) -> None:
    """Print a published schema.

    Example: hitrouter schema config
    """
    from pipeline.config import Config
    from schemas import read_schema

    value = Config.model_json_schema() if name == "config" else read_schema(_AVRO[name])
    click.echo(json.dumps(value, indent=2))
