"""`hitrouter try`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path

import click
from rich.console import Console

from pipeline.cli import config_option, load_to_read


@click.command("try", short_help="Show what would happen to a hit, without Kafka.")
@click.argument("hit", type=click.Path(path_type=Path, allow_dash=True, exists=True, dir_okay=False))
@config_option
@click.option("--project", help="The project that sends it.  [default: the first of the file]")
@click.option("--public", "is_public", is_flag=True, help="Treat it as a hit of a public door, such as /collect.")
@click.option("--ip", help="The IP address that sends the request.")
@click.option("--user-agent", help="The User-Agent of the request.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    hit: Path,
    file: Path,
    project: str | None,
    is_public: bool,
    ip: str | None,
    user_agent: str | None,
    as_json: bool,
) -> None:
    """Show what would happen to the hit in the file HIT (- is standard input).

    Nothing is sent, and Kafka is not needed. Exit code 1 if the hit would be refused.

    Example: hitrouter try hit.json -c hitrouter.yaml --project shop
    """
    from pipeline.console.trial_view import print_trial
    from pipeline.operations.try_hit import try_hit

    config = load_to_read(file, strict=True)
    body = sys.stdin.buffer.read() if str(hit) == "-" else hit.read_bytes()
    if project is not None and project not in config.projects:
        raise click.BadParameter(
            f"unknown project; the projects are: {', '.join(config.projects)}", param_hint="--project"
        )
    if ip is not None:
        try:
            ip_address(ip)
        except ValueError:
            raise click.BadParameter(f"{ip!r} is not an IP address", param_hint="--ip") from None
    trial = try_hit(config, body, project, ip, user_agent, is_public)
    if as_json:
        # The JSON member keeps its older name.
        click.echo(
            json.dumps({"outlooks" if name == "previews" else name: value for name, value in asdict(trial).items()})
        )
    else:
        print_trial(Console(), trial)
    if trial.refused is not None:
        sys.exit(1)
