"""`hitrouter fault-server`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from pipeline.cli import count_text


@click.command("fault-server", short_help="Run a destination that fails on purpose.")
@click.option(
    "--listen",
    default="127.0.0.1:9099",
    show_default=True,
    help="Address to listen on. The connection that uses it needs `delivery: {allow_private: true}`.",
)
@click.option(
    "--rules", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="File with a YAML list of rules."
)
@click.option("--rule", "more", multiple=True, help="One rule, such as '{share: 0.1, status: 503}'; can be repeated.")
def command(listen: str, rules: Path | None, more: tuple[str, ...]) -> None:
    """Run a destination that fails on purpose: delays, 429, 5xx, partial bodies, no response.

    A rule selects requests by share, contains and times, and responds with status, headers, body, delay, half_body or close.
    PUT /_rules replaces the rules; GET /_seen returns the counts of requests.

    Example: hitrouter fault-server --rule '{share: 0.2, status: 503}' --rule '{delay: 100ms}'
    """
    from pipeline.config.values import address
    from pipeline.development.fault_server import FaultServer, read_rules

    script = read_rules(rules.read_text()) if rules is not None else []
    for text in more:
        script += read_rules(f"[{text}]")
    try:
        host, _, port = address(listen).rpartition(":")
    except ValueError:
        raise click.BadParameter("must be host:port, such as 127.0.0.1:9099", param_hint="--listen") from None

    async def serve() -> None:
        server = FaultServer(script)
        try:
            await server.start(host, int(port))
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on {listen}: {os.strerror(error.errno or 0)}; choose another address with --listen"
            ) from None
        click.echo(f"listening on {server.url} with {count_text(len(script), 'rule')}; press Ctrl-C to stop")
        printed = 0
        try:
            while True:
                await asyncio.sleep(10)
                if (seen := server.seen.total()) != printed:
                    printed = seen
                    accepted = f"{server.taken.total()} accepted, {len(server.taken)} of them distinct"
                    click.echo(f"{count_text(seen, 'request')}, {accepted}")
        finally:
            await server.stop()

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        click.echo("stopped")
