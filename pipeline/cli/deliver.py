"""`hitrouter deliver`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, load_checked, slot_option


@click.command("deliver")
@config_option
@slot_option
def command(file: Path, slot: int) -> None:
    """Take routed hits to their sinks.

    Example: hitrouter deliver -c hitrouter.yaml --slot 0
    """
    from pipeline.delivery import run_deliver

    run_deliver(load_checked(file), slot)
