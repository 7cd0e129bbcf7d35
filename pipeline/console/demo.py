"""Runs the demo: sends sample hits, waits until they are delivered, and shows where each was delivered."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import msgspec
from rich.console import Console

from pipeline.codec.printable import escape_controls
from pipeline.config.models import Config
from pipeline.console.ledger_table import print_ledger
from pipeline.development.sample_hits import SampleHit, sample_hits
from pipeline.development.send_hits import send_hits
from pipeline.operations.ledger import Ledger, read_ledger
from pipeline.operations.refused_requests import intake_addresses
from pipeline.operations.routing_results import RoutingResultReader

HITS = 300
_DELIVERY_TIMEOUT_SECONDS = 90.0
_POLL_SECONDS = 1.0
_READY_TIMEOUT_SECONDS = 60.0
_READY_POLL_SECONDS = 0.2


class WebhookReceiver:
    """A local HTTP server that accepts the hits of the connection `crm` and records their ids."""

    def __init__(self) -> None:
        ids: list[str] = []

        class _Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                ids.append(self.headers["webhook-id"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.ids = ids
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hits"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()


@dataclass(slots=True)
class DemoResult:
    """The result of a run; `problems` is empty if all counts add up."""

    ledger: Ledger | None = None
    problems: list[str] = field(default_factory=list)


def wait_for_intake(config: Config) -> None:
    """Block until the intake is ready, or for a minute; earlier hits would get 503."""
    address = intake_addresses(config)[0]
    deadline = time.monotonic() + _READY_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            # Requests to hitrouter itself never use the proxies of the environment.
            if httpx.get(f"http://{address}/readyz", timeout=2, trust_env=False).is_success:
                return
        time.sleep(_READY_POLL_SECONDS)


def run_demo(
    config: Config, tokens: Mapping[str, str], example: Path, receiver: WebhookReceiver, show: Callable[[str], None]
) -> DemoResult:
    """Send the hits, wait until they are delivered, and check the counts. Blocks; the roles must be running."""
    result = DemoResult()
    before = read_ledger(config)
    webhooks_before = len(set(receiver.ids))
    # Each run uses new ids, so that the hits of a second demo on the same data are not duplicates.
    run = str(time.time_ns())
    document = msgspec.json.decode(example.read_bytes())
    document["hitId"] = f"example-{run}"
    hits = [SampleHit("shop", msgspec.json.encode(document), 204), *sample_hits(HITS, run)]
    wait_for_intake(config)
    show(f"sending the documented example and {len(hits) - 1} more hits to http://{config.intake.listen}/track")
    statuses = asyncio.run(send_hits(f"http://{config.intake.listen}/track", tokens, hits))
    for hit, status in zip(hits, statuses, strict=True):
        if status != hit.expected_status:
            result.problems.append(
                f"a hit of {hit.project or 'an unknown sender'} got status {status} instead of {hit.expected_status}"
            )
    accepted = [hit for hit in hits if hit.expected_status == 204]
    unique = len({hit.body for hit in accepted})
    show(f"responses: {_counts(statuses)}; {unique} different hits were accepted; waiting until all are delivered")
    deadline = time.monotonic() + _DELIVERY_TIMEOUT_SECONDS
    while True:
        ledger = read_ledger(config)
        pending = sum(sums.pending for sums in ledger.connections.values())
        if ledger.hits.received - before.hits.received >= len(accepted) and not pending:
            break
        if time.monotonic() > deadline:
            result.problems.append(f"after {_DELIVERY_TIMEOUT_SECONDS:.0f} s {pending} deliveries are still pending")
            break
        time.sleep(_POLL_SECONDS)
    result.ledger = ledger
    result.problems += ledger.problems
    expected = (
        ("received", ledger.hits.received - before.hits.received, len(accepted)),
        ("unique", ledger.hits.unique - before.hits.unique, unique),
        (
            "webhooks",
            len(set(receiver.ids)) - webhooks_before,
            ledger.connections["crm"].delivered - before.connections["crm"].delivered,
        ),
    )
    for what, counted, wanted in expected:
        if counted != wanted:
            result.problems.append(f"{what}: {counted} instead of {wanted}")
    return result


def print_demo(console: Console, config: Config, result: DemoResult) -> None:
    """Print the ledger, all problems, and where the files are."""
    if result.ledger is not None:
        print_ledger(console, result.ledger)
    for problem in result.problems:
        console.print(f"WRONG: {problem}", style="bold red", markup=False)
    files = [
        str(connection.settings["path"])
        for connection in config.connections.values()
        if connection.destination == "Files"
    ]
    console.print(f"Files are in {' and '.join(files)}.", markup=False)


def print_instructions(console: Console, config: Config, file: Path, exports: Mapping[str, str], token: str) -> None:
    """Print commands to try while the demo runs, ready to paste into another terminal."""
    command, named = this_command(), shlex.quote(str(file.resolve()))
    body = '{"hitId": "my-first", "event": {"name": "Tried", "user": {"userId": "me"}}}'
    lines = [
        f"The demo keeps running, with Kafka on {config.kafka.listen}; press Ctrl-C to stop it. New hits are shown here.",
        "Send one from another terminal:",
        f"  curl -i -u {token}: -H 'Content-Type: application/json' http://{config.intake.listen}/track \\",
        f"    -d '{body}'",
        "Then see what happened to it:",
        f"  {command} explain my-first -c {named}",
        f"  {command} tail -c {named}",
        f"  {command} tail --refused -c {named}",
        f"  {command} ledger -c {named}",
        "Commands that start a role or send hits also need the variables of the file:",
        *(f"  export {name}={shlex.quote(value)}" for name, value in exports.items()),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def this_command() -> str:
    """Return the command that starts this program from any folder in another terminal."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m pipeline"
    found = shutil.which(started.name)
    if found is not None and Path(found).resolve() == started.resolve():
        return started.name
    return shlex.quote(str(started.absolute()))


def print_further_hits(console: Console, reader: RoutingResultReader, stopped: Callable[[], bool]) -> None:
    """Print a line for each hit until `stopped`: time, event, hitId, where it was routed."""
    while not stopped():
        results, omitted = reader.read()
        for hit in results:
            event, hit_id, where = (escape_controls(text) or "-" for text in (hit.event, hit.hit_id, hit.text))
            console.print(f"{hit.at}  {event}  {hit_id}  {where}", markup=False, highlight=False, soft_wrap=True)
        if omitted:
            console.print(f"{omitted} more hits are not shown, because too many arrived at once; `ledger` counts them")


def _counts(statuses: list[int]) -> str:
    return ", ".join(f"{statuses.count(status)} x {status}" for status in sorted(set(statuses)))
