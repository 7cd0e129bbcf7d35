"""`hitrouter explain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console

from pipeline.cli import config_option, load_to_read, say


@click.command("explain", short_help="Show what happened to one hit.")
@click.argument("hit_id")
@config_option
@click.option("--project", help="Only hits of this project.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per project and kind of door.")
def command(hit_id: str, file: Path, project: str | None, as_json: bool) -> None:
    """Show what happened to the hit HIT_ID: when it was received, its duplicates, and its state at each connection.

    A hit of a public door and one of a secret door may have one hitId: they are two hits, and both are shown.

    It reads all records of the topics, so it takes a while on large ones. Exit code 1 if no topic has the hit.

    Example: hitrouter explain 4c59d330-35c7-11e9-8f27-8d1d7d4690e7
    """
    from pipeline.operations.explain import explain
    from pipeline.operations.ledger import read_ledger

    config = load_to_read(file)
    if project is not None and project not in config.projects:
        raise click.BadParameter(f"no such project; there are {', '.join(config.projects)}", param_hint="--project")
    with Console(stderr=True).status("reading the topics"):
        stories = explain(config, hit_id, project)
        expired = 0 if stories else read_ledger(config).hits.expired_at_most
    for story in stories:
        if as_json:
            shown = {
                "project": story.project,
                "hitId": story.hit_id,
                "door": story.door,
                "received": [
                    {"position": r.position, "time": r.at, "endpoint": r.endpoint, "note": r.note}
                    for r in story.received
                ],
                "connections": [{"name": w.connection, "state": w.state, "details": w.details} for w in story.ways],
                "notes": story.notes,
                "deadLetters": [letter.position for letter in story.dead],
                **({"unowned": story.unowned} if story.unowned else {}),
            }
            click.echo(json.dumps(shown))
            continue
        say(f"{story.hit_id} {story.unowned or f'of {story.project}, by a {story.door} door'}")
        for received in story.received:
            say(f"  {received.at}  {received.position}, by {received.endpoint}: {received.note}")
        for way in story.ways:
            say(f"  {way.connection}: {way.state}")
            for detail in way.details:
                say(f"      {detail}")
        for note in story.notes:
            say(f"  note: {note}")
        for letter in story.dead:
            if not letter.connection:
                say(f"  dead letter {letter.position}: {letter.reason}: {letter.message}")
    if not stories:
        say(
            f"no topic has the hit {hit_id}; a request that was refused is in `hitrouter tail --refused`, and what is older"
            " than the retention of the topics is gone"
            + (f"; retention took up to {expired:,} hits of hits-raw before a router read them" if expired else ""),
            err=True,
        )
        sys.exit(1)
