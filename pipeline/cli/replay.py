"""`hitrouter replay`."""

from __future__ import annotations

import uuid
from pathlib import Path

import click
from rich.console import Console

from pipeline.cli import config_option, count_text, load_checked, parse_time


@click.command("replay", short_help="Send stored hits to one connection again.")
@config_option
@click.option("--connection", required=True, help="The connection that gets the hits.")
@click.option(
    "--from",
    "from_ms",
    required=True,
    callback=parse_time,
    help="Start of the time range: 2026-11-24T10:00:00Z, or 2h for two hours ago.",
)
@click.option("--to", "to_ms", default="0s", show_default="now", callback=parse_time, help="End of the time range.")
@click.option("--id", "replay_id", help="Continue the interrupted replay with this id; no hit is routed twice.")
def command(file: Path, connection: str, from_ms: int, to_ms: int, replay_id: str | None) -> None:
    """Route hits of hits-raw again, only to one connection, and each hitId once. The router must be running.

    Example: hitrouter replay --connection crm --from 2026-11-24T10:00:00Z --to 2026-11-24T12:00:00Z
    """
    from pipeline.destination import ClickHouse, Files
    from pipeline.operations.replay import replay_hits
    from pipeline.registry import read_settings

    config = load_checked(file)
    if connection not in config.connections:
        raise click.BadParameter(
            f"unknown connection; the connections are: {', '.join(config.connections)}", param_hint="--connection"
        )
    if from_ms >= to_ms:
        raise click.BadParameter(
            "must be after --from; `2h` means two hours ago, so 10m is later than 2h", param_hint="--to"
        )
    if isinstance(read_settings(config.connections[connection])[0].sink, ClickHouse | Files):
        click.echo(
            f"{connection} stores replayed hits as new rows; hits that it already has will be duplicated", err=True
        )
    replay_id = replay_id or uuid.uuid4().hex[:12]
    click.echo(f"replay {replay_id}", err=True)
    with Console(stderr=True).status("reading") as status:
        done = replay_hits(config, connection, from_ms, to_ms, replay_id, lambda sent: status.update(f"{sent} sent"))
    click.echo(
        f"{count_text(done.sent, 'hit')} sent to the router, only for {connection}; `hitrouter ledger` counts those"
        " that it routes as replayed, and the others as replay_skipped"
    )
    if done.unusable:
        reasons = ", ".join(f"{count} {reason}" for reason, count in done.unusable.most_common())
        click.echo(
            f"{count_text(done.unusable.total(), 'record')} skipped, not valid hits: {reasons}; see"
            " `hitrouter dead-letters list`",
            err=True,
        )
