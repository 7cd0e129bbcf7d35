"""`hitrouter schema`."""

from __future__ import annotations

import json

import click

_PUBLISHED = {
    "config": "config.schema.json",
    "hit": "hit.schema.json",
    "raw-hit": "raw_hit.avsc",
    "routed-hit": "routed_hit.avsc",
    "dead-letter": "dead_letter.avsc",
    "ledger-entry": "ledger_entry.avsc",
    "openapi": "openapi.json",
}


@click.command("schema")
@click.argument("name", type=click.Choice(list(_PUBLISHED)))
def command(name: str) -> None:
    """Print a published schema.

    Example: hitrouter schema config > hitrouter.schema.json
    """
    from schemas import read_schema

    click.echo(json.dumps(read_schema(_PUBLISHED[name]), indent=2))
