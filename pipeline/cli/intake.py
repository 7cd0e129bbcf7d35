"""`hitrouter intake`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, load_checked, slot_option


@click.command("intake")
@config_option
@slot_option
def command(file: Path, slot: int) -> None:
    """Receive hits over HTTP.

    Example: hitrouter intake -c hitrouter.yaml --slot 0
    """
    from pipeline.config import Watched
    from pipeline.intake import run_intake

    watched = Watched(file, load_checked)
    run_intake(watched.config, watched.changed, slot)
