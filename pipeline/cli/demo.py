"""`hitrouter demo`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from rich.console import Console

from pipeline.operations.packaged_files import examples_folder

_TOKENS = {"shop": "shop-demo-token", "blog": "blog-demo-token"}


@click.command("demo", short_help="Run an example with sample hits.")
@click.option("--once", is_flag=True, help="Stop when all hits are delivered. Exit code 0 only if all counts add up.")
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path),
    default=examples_folder() / "hitrouter.yaml",
    help="Another configuration, with the same projects and a connection `crm`.",
)
def command(once: bool, file: Path) -> None:
    """Run all roles with the example configuration, send sample hits, and show where they were delivered.

    It writes to the folder `data` in the current folder. Without --once it keeps running and shows each further hit.

    Example: hitrouter demo --once
    """
    from pipeline.console.demo import WebhookReceiver, print_demo, print_further_hits, print_instructions, run_demo
    from pipeline.operations.routing_results import RoutingResultReader
    from pipeline.supervisor import Supervisor, open_configuration

    console = Console()
    receiver = WebhookReceiver()
    exports = {"SHOP_TOKEN": _TOKENS["shop"], "BLOG_TOKEN": _TOKENS["blog"], "WEBHOOK_URL": receiver.url}
    os.environ |= exports
    opened = open_configuration(file)
    config, supervisor = opened.config, Supervisor(opened)
    failed = [True]

    def when_up() -> None:
        try:
            result = run_demo(config, _TOKENS, examples_folder() / "hit.json", receiver, console.print)
            print_demo(console, config, result)
            failed[0] = bool(result.problems)
            if not once:
                reader = RoutingResultReader(config)  # before the instructions, so that no hit is missed
                print_instructions(console, config, file, exports, _TOKENS["shop"])
                print_further_hits(console, reader, supervisor.stopping.is_set)
                reader.close()
        except Exception as error:
            if supervisor.stopping.is_set():
                return  # the stop of Kafka causes errors here
            console.print(f"the demo failed: {error!r}", style="bold red", markup=False)
        if once:
            supervisor.stopping.set()

    console.print(f"starting Kafka, intake, router and deliverers with {file}", markup=False)
    supervisor.run(when_up)
    if once and failed[0]:
        sys.exit(1)
