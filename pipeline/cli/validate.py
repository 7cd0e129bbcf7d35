"""`hitrouter validate`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option
from pipeline.config import load_config


@click.command("validate")
@config_option
def command(file: Path) -> None:
    """Check the configuration file; exit code 0 or 1.

    Example: hitrouter validate -c hitrouter.yaml
    """
    from pipeline.delivery.declared import check_connections

    config = load_config(file)
    check_connections(config, file)
    click.echo(f"{file}: good: {len(config.projects)} projects, {len(config.connections)} connections")
