"""`hitrouter intake`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, slot_option, watch_checked


@click.command("intake")
@config_option
@slot_option
def command(file: Path, slot: int) -> None:
    """Receive hits over HTTP.

    Example: hitrouter intake -c hitrouter.yaml --slot 0
    """
    from pipeline.intake import run_intake

    run_intake(watch_checked(file), slot)
