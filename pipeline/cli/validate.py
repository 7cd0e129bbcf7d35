"""`hitrouter validate`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, count_text, load_checked


@click.command("validate", short_help="Check the configuration file.")
@config_option
def command(file: Path) -> None:
    """Check the configuration file, and print every problem with its line. Exit code 1 if there is one.

    Warnings show valid settings that are probably mistakes, such as a short retention. They do not change the exit code.

    Example: hitrouter validate -c hitrouter.yaml
    """

    config = load_checked(file, lambda line: click.echo(f"warning: {line}", err=True))
    counted = f"{count_text(len(config.projects), 'project')}, {count_text(len(config.connections), 'connection')}"
    click.echo(f"{file} is valid: {counted}")
