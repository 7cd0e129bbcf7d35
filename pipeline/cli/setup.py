"""`hitrouter setup`."""

from __future__ import annotations

import click


@click.command("setup")
def command() -> None:
    """Fetch the jars of Apache Kafka into the cache; a second time is instant.

    Example: hitrouter setup
    """
    from pipeline.kafka.embedded import fetch_jars

    click.echo(f"Apache Kafka is in {fetch_jars()[0].parent}")
