"""`hitrouter explain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console

from pipeline.cli import config_option, load_to_read, print_line


@click.command("explain", short_help="Show what happened to one hit.")
@click.argument("hit_id")
@config_option
@click.option("--project", help="Only hits of this project.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per project and door.")
def command(hit_id: str, file: Path, project: str | None, as_json: bool) -> None:
    """Show what happened to the hit HIT_ID: when it was received, its duplicates, and its state at each connection.

    A hit of a public door and a hit of a secret door can have the same hitId. They are different hits, and both are shown.

    It reads all records of the topics, so large topics take a while. Exit code 1 if no topic has the hit.

    Example: hitrouter explain 4c59d330-35c7-11e9-8f27-8d1d7d4690e7
    """
    from pipeline.operations.explain import explain
    from pipeline.operations.ledger import read_ledger

    config = load_to_read(file)
    if project is not None and project not in config.projects:
        raise click.BadParameter(
            f"unknown project; the projects are: {', '.join(config.projects)}", param_hint="--project"
        )
    with Console(stderr=True).status("reading the topics"):
        hit_traces = explain(config, hit_id, project)
        expired = 0 if hit_traces else read_ledger(config).hits.expired_at_most
    for hit_trace in hit_traces:
        if as_json:
            shown = {
                "project": hit_trace.project,
                "hitId": hit_trace.hit_id,
                "door": hit_trace.door,
                "received": [
                    {"position": r.position, "time": r.at, "endpoint": r.endpoint, "note": r.note}
                    for r in hit_trace.received
                ],
                "connections": [
                    {"name": trace.connection, "state": trace.state, "details": trace.details}
                    for trace in hit_trace.connection_traces
                ],
                "notes": hit_trace.notes,
                "deadLetters": [letter.position for letter in hit_trace.dead],
                **({"unowned": hit_trace.unowned} if hit_trace.unowned else {}),
            }
            click.echo(json.dumps(shown))
            continue
        print_line(f"{hit_trace.hit_id} {hit_trace.unowned or f'of {hit_trace.project}, by a {hit_trace.door} door'}")
        for received in hit_trace.received:
            print_line(f"  {received.at}  {received.position}, by {received.endpoint}: {received.note}")
        for trace in hit_trace.connection_traces:
            print_line(f"  {trace.connection}: {trace.state}")
            for detail in trace.details:
                print_line(f"      {detail}")
        for note in hit_trace.notes:
            print_line(f"  note: {note}")
        for letter in hit_trace.dead:
            if not letter.connection:
                print_line(f"  dead letter {letter.position}: {letter.reason}: {letter.message}")
    if not hit_traces:
        print_line(
            f"no topic has the hit {hit_id}; see `hitrouter tail --refused` for refused requests, and note that retention"
            " deletes old hits"
            + (
                f"; retention has deleted up to {expired:,} hits of hits-raw before a router read them"
                if expired
                else ""
            ),
            err=True,
        )
        sys.exit(1)
