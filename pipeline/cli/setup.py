"""`hitrouter setup`."""

from __future__ import annotations

import click


@click.command("setup", short_help="Download Apache Kafka into the cache.")
def command() -> None:
    """Download the jars of Apache Kafka into the cache, unless they are already there.

    Example: hitrouter setup
    """
    from pipeline.kafka.embedded import fetch_jars

    click.echo(f"Apache Kafka is in {fetch_jars()[0].parent}")
