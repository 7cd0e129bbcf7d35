"""`hitrouter ledger`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from pipeline.cli import config_option, load_to_read

if TYPE_CHECKING:
    from pipeline.operations.ledger import Ledger, Pause


@click.command("ledger", short_help="Account for every hit.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, as_json: bool) -> None:
    """Account for all hits: delivered, dead, waiting and for how long, or deleted by retention before delivery.

    Exit code 1 if hits are missing, counted twice, or expired.

    Example: hitrouter ledger -c hitrouter.yaml
    """
    from pipeline.console.ledger_table import print_ledger
    from pipeline.operations.ledger import read_ledger

    config = load_to_read(file)
    ledger = read_ledger(config)
    if as_json:
        sums = {
            "hits": asdict(ledger.hits),
            "begins_ms": ledger.begins_ms,
            "is_complete": ledger.is_complete,
            "not_routed": _backlog(ledger, ""),
            "connections": {
                name: {**asdict(sums), "pending": sums.pending, "backlog": _backlog(ledger, name)}
                for name, sums in ledger.connections.items()
            },
            "notes": [{"what": what, "reason": why, "count": count} for (what, why), count in ledger.notes.items()],
            "misconfigured": {name: _pause(pause) for name, pause in ledger.paused.items()},
            "failing": {name: _pause(pause) for name, pause in ledger.failing.items()},
            "set_aside": {name: asdict(hits) for name, hits in ledger.set_aside.items()},
            "set_aside_expired_at_most": ledger.set_aside_expired_at_most,
            "not_in_the_file": ledger.removed,
            "unknown_names": dict(ledger.unknown_names),
            "problems": ledger.problems,
            "adds_up": ledger.adds_up,
        }
        click.echo(json.dumps(sums))
    else:
        print_ledger(Console(), ledger)
    if not ledger.adds_up:
        sys.exit(1)


def _backlog(ledger: Ledger, name: str) -> dict[str, Any] | None:
    backlog = ledger.backlogs.get(name)
    return None if backlog is None else {**asdict(backlog), "expires_ms": backlog.expires_ms}


def _pause(pause: Pause) -> dict[str, Any]:
    return {"since_ms": pause.since_ms, "message": pause.message}
