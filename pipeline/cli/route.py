"""`hitrouter route`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, slot_option, watch_checked


@click.command("route")
@config_option
@slot_option
def command(file: Path, slot: int) -> None:
    """Deduplicate, enrich and route hits.

    Example: hitrouter route -c hitrouter.yaml --slot 0
    """
    from pipeline.router.app import run_route

    run_route(watch_checked(file), slot)
