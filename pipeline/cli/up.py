"""`hitrouter up`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option


@click.command("up", short_help="Run all roles on this machine.")
@config_option
def command(file: Path) -> None:
    """Run all roles on this machine, with the embedded Kafka if `kafka.bootstrap_servers` is `embedded`.

    Example: hitrouter up -c hitrouter.yaml
    """
    from pipeline.supervisor import Supervisor, open_configuration

    Supervisor(open_configuration(file)).run()
