"""`hitrouter tail`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.cli import config_option, harmless, load_checked


@click.command("tail")
@config_option
@click.option("--connection", help="What this connection gets; what the intake takes unless given.")
@click.option("--project", help="Of this project.")
@click.option("--event", "event", help="With this event name.")
@click.option("--hit-id", help="With this hitId.")
@click.option("--limit", type=click.IntRange(1), help="End after so many.")
@click.option("--json", "as_json", is_flag=True, help="Whole hits, one per line.")
def command(
    file: Path,
    connection: str | None,
    project: str | None,
    event: str | None,
    hit_id: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show hits as they come, until Ctrl-C.

    Example: hitrouter tail --connection crm --event "Completed Transaction"
    """
    from pipeline.operations.tail import tail

    config = load_checked(file, secrets_needed=False)
    if connection is not None and connection not in config.connections:
        raise click.BadParameter(
            f"no such connection; there are {', '.join(config.connections)}", param_hint="--connection"
        )
    wanted = {"project": project, "event": event, "hit_id": hit_id}
    shown, told = 0, False
    for seen in tail(config, connection):
        if seen is None:
            if not told:
                click.echo("waiting for hits", err=True)
                told = True
            continue
        if any(value is not None and getattr(seen, name) != value for name, value in wanted.items()):
            continue
        if as_json:
            try:
                click.echo(json.dumps(json.loads(seen.value)))
            except ValueError:
                click.echo(json.dumps({"invalid": seen.value.decode(errors="backslashreplace")}))
        else:
            event_name, id_ = (harmless(text).replace("\n", "\\n") for text in (seen.event, seen.hit_id))
            click.echo(f"{seen.at}  {harmless(seen.project) or '-':12} {event_name or '-':28} {id_ or '-'}")
        shown += 1
        if shown == limit:
            return
