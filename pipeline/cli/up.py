"""`hitrouter up`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, load_checked


@click.command("up")
@config_option
def command(file: Path) -> None:
    """Run all roles on this machine, with the embedded Kafka where the file says so.

    Example: hitrouter up -c hitrouter.yaml
    """
    from pipeline.supervisor import Supervisor

    Supervisor(file, load_checked(file)).run()
