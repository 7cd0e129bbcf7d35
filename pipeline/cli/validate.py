"""`hitrouter validate`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import amount, config_option, load_checked


@click.command("validate", short_help="Check the configuration file.")
@config_option
def command(file: Path) -> None:
    """Check the configuration file and print every problem with its line. Exit code 1 if there is one.

    A warning names a setting that is valid and hardly meant, such as a retention that is too short; the exit code stays 0.

    Example: hitrouter validate -c hitrouter.yaml
    """

    config = load_checked(file, lambda line: click.echo(f"warning: {line}", err=True))
    counted = f"{amount(len(config.projects), 'project')}, {amount(len(config.connections), 'connection')}"
    click.echo(f"{file} is valid: {counted}")
