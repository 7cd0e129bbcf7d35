"""`hitrouter tail`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli import config_option, load_to_read, print_line
from pipeline.codec.printable import escape_controls, readable_value
from pipeline.errors import IntakeUnavailable

if TYPE_CHECKING:
    from pipeline.codec.refused_request import RefusedRequest
    from pipeline.config import Config

_POLL_SECONDS = 1.0


@click.command("tail", short_help="Show hits, or refused requests, as they arrive.")
@config_option
@click.option("--connection", help="Show hits that this connection gets. Without it, show hits of hits-raw.")
@click.option("--project", help="Only of this project.")
@click.option("--event", "event", help="Only with this event name.")
@click.option("--hit-id", help="Only with this hitId.")
@click.option("--limit", type=click.IntRange(1), help="Stop after this number of lines.")
@click.option("--json", "as_json", is_flag=True, help="Print whole hits as JSON, one per line.")
@click.option("--refused", is_flag=True, help="Show refused requests: those in the intakes' memory, then new ones.")
@click.option("--once", is_flag=True, help="With --refused: show those in memory, then stop.")
@click.option(
    "--with-body", is_flag=True, help="With --refused: show bodies of new requests. Works only on the intake's machine."
)
@click.option(
    "--admin",
    "admin",
    multiple=True,
    metavar="HOST:PORT",
    help="With --refused: the admin address of an intake on another machine; can be repeated.",
)
def command(
    file: Path,
    connection: str | None,
    project: str | None,
    event: str | None,
    hit_id: str | None,
    limit: int | None,
    as_json: bool,
    refused: bool,
    once: bool,
    with_body: bool,
    admin: tuple[str, ...],
) -> None:
    """Show hits as they arrive, or refused requests, until Ctrl-C.

    Each intake keeps a sample of its refused requests in memory: for each code at most 20 a second, and the last 100.

    Example: hitrouter tail --connection crm --event "Completed Transaction"
    """
    if refused and (connection or event or hit_id):
        raise click.UsageError("a refused request has no connection, event or hitId; use --project and --limit")
    if not refused and (once or with_body or admin):
        raise click.UsageError("--once, --with-body and --admin need --refused")
    for text in admin:
        _check_address(text)
    config = load_to_read(file)
    if connection is not None and connection not in config.connections:
        raise click.BadParameter(
            f"unknown connection; the connections are: {', '.join(config.connections)}", param_hint="--connection"
        )
    try:
        if refused:
            requests = _refused_requests(config, admin, once, with_body)
            if not _print(_refused_lines(requests, project, as_json), limit):
                click.echo("no refused requests", err=True)
        else:
            _print(
                _hit_lines(config, connection, {"project": project, "event": event, "hit_id": hit_id}, as_json), limit
            )
    except KeyboardInterrupt:
        return


def _check_address(text: str) -> None:
    from pipeline.config.values import address

    try:
        address(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--admin") from None


def _print(lines: Iterator[str], limit: int | None) -> int:
    """Print at most `limit` lines, and return how many were printed."""
    number = 0
    for number, line in enumerate(lines, 1):
        click.echo(line)
        if number == limit:
            break
    return number


def _hit_lines(config: Config, connection: str | None, wanted: dict[str, str | None], as_json: bool) -> Iterator[str]:
    from pipeline.operations.tail import tail

    waiting = False
    for seen in tail(config, connection):
        if seen is None:
            if not waiting:
                click.echo("waiting for hits", err=True)
                waiting = True
            continue
        if any(value is not None and getattr(seen, name) != value for name, value in wanted.items()):
            continue
        if as_json:
            try:
                yield json.dumps(readable_value(seen.value))
            except ValueError:
                yield json.dumps({"invalid": seen.value.decode(errors="backslashreplace")})
        else:
            project, event_name, id_ = (_in_line(text) for text in (seen.project, seen.event, seen.hit_id))
            yield f"{seen.at}  {project:12} {event_name:28} {id_}{' (public)' if seen.is_public else ''}"


def _refused_requests(config: Config, admin: tuple[str, ...], once: bool, with_body: bool) -> Iterator[RefusedRequest]:
    """Yield the refused requests in the intakes' memory, then new ones. Raises IntakeUnavailable if none responds at first."""
    from pipeline.operations.refused_requests import RefusedReader, intake_addresses

    addresses = list(admin) or intake_addresses(config)
    reader = RefusedReader(addresses, with_body)
    known: dict[str, str] = {}
    try:
        yield from reader.read()
        if len(reader.problems) == len(addresses):
            where = ", ".join(f"{address} ({problem})" for address, problem in reader.problems.items())
            raise IntakeUnavailable(
                f"no intake responds at {where}; check that it is running, or set its admin address with --admin"
            )
        if not once:
            click.echo("waiting for refused requests", err=True)
        while True:
            for address, problem in reader.problems.items():
                if address not in known:
                    print_line(f"the intake at {address} does not respond: {problem}", err=True)
            known = dict(reader.problems)
            if once:
                return
            time.sleep(_POLL_SECONDS)
            yield from reader.read()
    finally:
        reader.close()


def _refused_lines(requests: Iterator[RefusedRequest], project: str | None, as_json: bool) -> Iterator[str]:
    import msgspec

    from pipeline.codec.routed_hit import time_text

    for request in requests:
        if project is not None and request.project != project:
            continue
        at = time_text(request.time_ms)
        if as_json:
            shown = msgspec.structs.asdict(request)
            del shown["number"], shown["time_ms"]
            if not request.body:
                del shown["body"]
            yield json.dumps({"time": at, **shown})
            continue
        asked = _in_line(f"{request.method} {request.path}".strip())
        place = f" at {_in_line(request.place)}" if request.place else ""
        line = f"{at}  {request.status} {request.code:24} {_in_line(request.project):12} {asked}{place}: "
        line += _in_line(request.message)
        if request.missed:
            line += f" ({request.missed} earlier ones with this code are not shown)"
        if request.body:
            line += "\n    " + escape_controls(request.body, "\n\t")
        yield line


def _in_line(text: str) -> str:
    return escape_controls(text) or "-"
