"""`hitrouter validate`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import amount, config_option, load_checked


@click.command("validate", short_help="Check the configuration file.")
@config_option
def command(file: Path) -> None:
    """Check the configuration file and print every problem with its line. Exit code 1 if there is one.

    Example: hitrouter validate -c hitrouter.yaml
    """

    config = load_checked(file)
    counted = f"{amount(len(config.projects), 'project')}, {amount(len(config.connections), 'connection')}"
    click.echo(f"{file} is valid: {counted}")
