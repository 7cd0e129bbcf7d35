"""`hitrouter topics`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from pipeline.cli import config_option, load_to_read


@click.command("topics")
@config_option
@click.option(
    "--apply",
    "apply",
    is_flag=True,
    help="Create missing topics, lengthen retention, add partitions to seen-hits and set-aside.",
)
@click.option(
    "--partitions", type=click.IntRange(1, 1000), help="Grow hits-raw and seen-hits to this number of partitions."
)
@click.option("--connection", help="With --partitions: grow the topic of this connection instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, apply: bool, partitions: int | None, connection: str | None, as_json: bool) -> None:
    """Show each topic as declared in the file and as it is in Kafka, and how to fix differences.

    Exit code 1 if a topic is missing or breaks the delivery guarantee. Nothing is changed without --apply or --partitions,
    and nothing is ever deleted. Offsets include commit markers, so they are an upper bound of the records.

    Example: hitrouter topics --apply -c hitrouter.yaml
    """
    from pipeline.console.topics_table import growth_hint, topics_as_json, topics_as_lines
    from pipeline.operations.topics import (
        CannotShrink,
        MissingTopics,
        apply_safe_changes,
        grow_partitions,
        read_topics,
    )

    if apply and partitions is not None:
        raise click.UsageError("--apply and --partitions cannot be combined; run --apply first")
    if connection is not None and partitions is None:
        raise click.UsageError("--connection needs --partitions")
    config = load_to_read(file, strict=apply or partitions is not None)
    if connection is not None and connection not in config.connections:
        raise click.BadParameter(
            f"unknown connection; the connections are: {', '.join(config.connections)}", param_hint="--connection"
        )
    done = []
    try:
        if apply:
            changes = apply_safe_changes(config)
        elif partitions is not None:
            changes = grow_partitions(config, partitions, connection)
        else:
            changes = iter(())
        for line in changes:
            done.append(line)
            click.echo(line, err=as_json)
    except CannotShrink as error:
        raise click.BadParameter(str(error), param_hint="--partitions") from None
    except MissingTopics as error:
        raise click.ClickException(str(error)) from None
    topics = read_topics(config)
    if as_json:
        click.echo(json.dumps({"done": done, **topics_as_json(config, topics)}))
    else:
        for line in topics_as_lines(config, topics):
            click.echo(line)
        if partitions is not None:
            click.echo(growth_hint(config, partitions, connection, has_grown=bool(done)))
    if not topics.are_good:
        sys.exit(1)
