"""`hitrouter ledger`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from pipeline.cli import config_option, load_checked


@click.command("ledger", short_help="Account for every hit.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, as_json: bool) -> None:
    """Count what happened to all hits, and list the connections that wait. Exit code 1 if the counts do not add up.

    Example: hitrouter ledger -c hitrouter.yaml
    """
    from pipeline.console.ledger_table import print_ledger
    from pipeline.operations.ledger import read_ledger

    config = load_checked(file, secrets_needed=False)
    ledger = read_ledger(config)
    if as_json:
        connections = {name: {**asdict(s), "pending": s.pending} for name, s in ledger.connections.items()}
        notes = [{"what": what, "reason": why, "count": count} for (what, why), count in ledger.notes.items()]
        sums = {
            "hits": asdict(ledger.hits),
            "connections": connections,
            "notes": notes,
            "misconfigured": {name: asdict(pause) for name, pause in ledger.paused.items()},
            "not_in_the_file": ledger.gone,
            "unknown_names": dict(ledger.unknown_names),
            "problems": ledger.problems,
        }
        click.echo(json.dumps(sums))
    else:
        print_ledger(Console(), ledger)
    if not ledger.adds_up:
        sys.exit(1)
