"""`hitrouter deliver`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, slot_option, watch_checked


@click.command("deliver")
@config_option
@slot_option
def command(file: Path, slot: int) -> None:
    """Deliver routed hits to their destinations.

    Example: hitrouter deliver -c hitrouter.yaml --slot 0
    """
    from pipeline.delivery.app import run_deliver

    run_deliver(watch_checked(file), slot)
