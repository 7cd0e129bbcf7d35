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

from pipeline.cli import config_option, load_checked, load_to_read, parse_time, print_line, print_text

if TYPE_CHECKING:
    from pipeline.config import Config


@click.group("dead-letters", short_help="List, show or replay hits that were not delivered.")
def command() -> None:
    """List, show or replay hits that could not be delivered.

    Example: hitrouter dead-letters replay --connection crm --reason http_422
    """


def _filters(function: Callable[..., None]) -> Any:
    for option in (
        click.option("--until", "until_ms", callback=parse_time, help="Only those written before this time."),
        click.option(
            "--since",
            "since_ms",
            callback=parse_time,
            help="Only those written since this time: 2026-11-24T10:00:00Z, or 2h for two hours ago.",
        ),
        click.option("--project", help="Only those of this project."),
        click.option("--reason", help="Only those with this reason."),
        click.option("--connection", help="Only those of this connection; '' selects hits that were not routed."),
        config_option,
    ):
        function = option(function)
    return function


def _warn_if_unknown(config: Config, connection: str | None) -> None:
    """Warn if `connection` is not in the file. It is no error, since a removed connection can have dead letters."""
    if connection and connection not in config.connections:
        known = ", ".join(config.connections) or "none"
        print_line(f"{connection} is not a connection of the file; its connections are: {known}", err=True)


@command.command("list")
@_filters
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per dead letter, without the hit.")
def list_(file: Path, as_json: bool, **filters: Any) -> None:
    """Count dead letters by stage, connection and reason, with an example of each.

    Example: hitrouter dead-letters list --since 2h
    """
    from pipeline.codec.routed_hit import time_text
    from pipeline.operations.dead_letters import DeadLetterFilter, DeadLetterGroup, read_dead_letters

    groups: dict[tuple[str, str, str], DeadLetterGroup] = {}
    config = load_to_read(file)
    for letter in read_dead_letters(config, DeadLetterFilter(**filters)):
        groups.setdefault((letter.stage, letter.connection, letter.reason), DeadLetterGroup(letter)).add(letter)
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
        _warn_if_unknown(config, filters["connection"])
    if as_json:
        return
    for (stage, connection, reason), group in sorted(groups.items()):
        first = group.first
        cause = f"{stage:7} {connection or '-':20} {reason:22}"
        replayed = f", {group.replayed} replayed" if group.replayed else ""
        print_line(f"{group.count:8} {cause} last {time_text(group.last_ms)}{replayed}")
        print_line(f"         for example {first.position}: {first.path and first.path + ': '}{first.message}")
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
    from pipeline.operations.dead_letters import DeadLetterFilter, read_dead_letters

    for letter in read_dead_letters(load_to_read(file), DeadLetterFilter(positions=frozenset({position}))):
        for name in ("stage", "reason", "message", "path", "connection", "project", "replayed"):
            print_line(f"{name + ':':12} {getattr(letter, name)}")
        click.echo(f"time:        {time_text(letter.at_ms)}")
        print_line(f"origin:      {letter.origin.topic}-{letter.origin.partition} at {letter.origin.offset}")
        print_line(f"key:         {(letter.key or b'').decode(errors='backslashreplace')}")
        print_text((letter.value or b"").decode(errors="backslashreplace"))
        return
    click.echo(f"no dead letter at {position}; `hitrouter dead-letters list --json` shows all positions", err=True)
    sys.exit(1)


@command.command("replay")
@_filters
@click.argument("positions", nargs=-1)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def replay(file: Path, yes: bool, positions: tuple[str, ...], **filters: Any) -> None:
    """Replay dead letters: send each to the connection that failed, or to hits-raw if the router failed.

    Each dead letter is replayed only once; later replays skip it. If two replays run at once, the later one continues and
    the earlier one stops.

    Example: hitrouter dead-letters replay --connection crm --since 2h
    """
    from pipeline.operations.dead_letters import DeadLetterFilter, read_dead_letters, replay_dead_letters

    config = load_checked(file)
    wanted = DeadLetterFilter(**filters, positions=frozenset(positions))
    found = Counter(
        (letter.connection, letter.reason) for letter in read_dead_letters(config, wanted) if not letter.replayed
    )
    if not found:
        click.echo("no dead letters to replay")
        _warn_if_unknown(config, wanted.connection)
        return
    for (connection, reason), count in sorted(found.items()):
        print_line(f"{count:8} {connection or '-':20} {reason}")
    if not yes:
        click.confirm(f"replay {found.total()}?", abort=True)
    console = Console(stderr=True)
    with console.status("replaying") as status:
        done = replay_dead_letters(config, wanted, lambda sent: status.update(f"{sent} sent"))
    for what, count in done.items():
        print_line(f"{count:8} {what}")
