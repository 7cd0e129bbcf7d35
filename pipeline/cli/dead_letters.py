"""`hitrouter dead-letters`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from pipeline.cli import config_option, load_checked, load_to_read, moment, say, say_text

if TYPE_CHECKING:
    from pipeline.config import Config


@click.group("dead-letters", short_help="List, show or resend what was not delivered.")
def command() -> None:
    """List, show or resend hits that could not be delivered.

    Example: hitrouter dead-letters replay --connection crm --reason http_422
    """


def _filters(function: Callable[..., None]) -> Any:
    for option in (
        click.option("--until", "until_ms", callback=moment, help="Only before this time."),
        click.option(
            "--since",
            "since_ms",
            callback=moment,
            help="Only from this time on: 2026-11-24T10:00:00Z, or 2h for two hours ago.",
        ),
        click.option("--project", help="Only of this project."),
        click.option("--reason", help="Only with this reason."),
        click.option("--connection", help="Only of this connection; '' for hits that were not routed."),
        config_option,
    ):
        function = option(function)
    return function


def _hint(config: Config, connection: str | None) -> None:
    """One that left the file may have dead letters, so a name that is not in it is no mistake by itself."""
    if connection and connection not in config.connections:
        there = ", ".join(config.connections) or "none"
        say(f"{connection} is no connection of the file; there are {there}", err=True)


@command.command("list")
@_filters
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per dead letter, without the hit.")
def list_(file: Path, as_json: bool, **filters: Any) -> None:
    """Count dead letters by stage, connection and reason, with an example of each.

    Example: hitrouter dead-letters list --since 2h
    """
    from pipeline.codec.routed_hit import time_text
    from pipeline.operations.dead_letters import Filter, Group, read_letters

    groups: dict[tuple[str, str, str], Group] = {}
    config = load_to_read(file)
    for letter in read_letters(config, Filter(**filters)):
        groups.setdefault((letter.stage, letter.connection, letter.reason), Group(letter)).add(letter)
        if as_json:
            shown = {
                "position": letter.position,
                "time": time_text(letter.at_ms),
                **{
                    name: getattr(letter, name)
                    for name in ("stage", "connection", "project", "reason", "path", "message")
                },
                "origin": f"{letter.origin.topic}-{letter.origin.partition}-{letter.origin.offset}",
                "replayed": letter.replayed,
            }
            click.echo(json.dumps(shown))
    if not groups:
        _hint(config, filters["connection"])
    if as_json:
        return
    for (stage, connection, reason), group in sorted(groups.items()):
        first, again = group.first, group.replayed
        cause = f"{stage:7} {connection or '-':20} {reason:22}"
        resent = f", {again} resent" if again else ""
        say(f"{group.letters:8} {cause} last {time_text(group.last_ms)}{resent}")
        say(f"         for example {first.position}: {first.path and first.path + ': '}{first.message}")
    if not groups:
        click.echo("no dead letters")


@command.command("show")
@click.argument("position")
@config_option
def show(position: str, file: Path) -> None:
    """Show the dead letter at POSITION with its hit. `list` prints positions.

    Example: hitrouter dead-letters show 0-15
    """
    from pipeline.codec.routed_hit import time_text
    from pipeline.operations.dead_letters import Filter, read_letters

    for letter in read_letters(load_to_read(file), Filter(positions=frozenset({position}))):
        for name in ("stage", "reason", "message", "path", "connection", "project", "replayed"):
            say(f"{name + ':':12} {getattr(letter, name)}")
        click.echo(f"time:        {time_text(letter.at_ms)}")
        say(f"origin:      {letter.origin.topic}-{letter.origin.partition} at {letter.origin.offset}")
        say(f"key:         {(letter.key or b'').decode(errors='backslashreplace')}")
        say_text((letter.value or b"").decode(errors="backslashreplace"))
        return
    click.echo(f"no dead letter at {position}; `hitrouter dead-letters list --json` names them", err=True)
    sys.exit(1)


@command.command("replay")
@_filters
@click.argument("positions", nargs=-1)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def replay(file: Path, yes: bool, positions: tuple[str, ...], **filters: Any) -> None:
    """Resend dead letters: to the connection that failed, or to hits-raw if the router failed.

    A dead letter is resent once; the next replay leaves it out. If two replays run at once, the later one continues and the
    earlier one stops.

    Example: hitrouter dead-letters replay --connection crm --since 2h
    """
    from pipeline.operations.dead_letters import Filter, read_letters, replay_letters

    config = load_checked(file)
    wanted = Filter(**filters, positions=frozenset(positions))
    found = Counter(
        (letter.connection, letter.reason) for letter in read_letters(config, wanted) if not letter.replayed
    )
    if not found:
        click.echo("no dead letters to send again")
        _hint(config, wanted.connection)
        return
    for (connection, reason), count in sorted(found.items()):
        say(f"{count:8} {connection or '-':20} {reason}")
    if not yes:
        click.confirm(f"resend {found.total()}?", abort=True)
    console = Console(stderr=True)
    with console.status("resending") as status:
        done = replay_letters(config, wanted, lambda sent: status.update(f"{sent} sent"))
    for what, count in done.items():
        say(f"{count:8} {what}")
