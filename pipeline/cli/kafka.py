"""`hitrouter kafka`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, load_checked


@click.command("kafka")
@config_option
def command(file: Path) -> None:
    """Run the embedded Apache Kafka alone.

    Example: hitrouter kafka -c hitrouter.yaml
    """
    from pipeline.kafka.embedded import run

    run(load_checked(file).kafka)
