"""The demo: sends the sample traffic, waits until it has arrived everywhere, and shows where it went."""

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
from pipeline.operations.ledger import Ledger, read_ledger
from pipeline.operations.refused_requests import intake_addresses
from pipeline.operations.sample_hits import SampleHit, sample_hits
from pipeline.operations.send_hits import send_hits
from pipeline.operations.where_hits_went import HitReader

HITS = 300
_ARRIVE_SECONDS = 90.0
_POLL_SECONDS = 1.0
_READY_SECONDS = 60.0
_READY_POLL_SECONDS = 0.2


class WebhookReceiver:
    """A small server on this machine that takes the hits of the connection `crm`, and remembers their ids."""

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
    """`problems` is empty when every number adds up."""

    ledger: Ledger | None = None
    problems: list[str] = field(default_factory=list)


def wait_for_intake(config: Config) -> None:
    """Block until the intake is ready, or for a minute: hits sent before would be answered 503."""
    address = intake_addresses(config)[0]
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            # Without the environment's proxies, as all requests to hitrouter itself.
            if httpx.get(f"http://{address}/readyz", timeout=2, trust_env=False).is_success:
                return
        time.sleep(_READY_POLL_SECONDS)


def run_demo(
    config: Config, tokens: Mapping[str, str], example: Path, receiver: WebhookReceiver, say: Callable[[str], None]
) -> DemoResult:
    """Send everything, wait, compare. Blocks; needs the roles to run already."""
    result = DemoResult()
    before = read_ledger(config)
    webhooks_before = len(set(receiver.ids))
    # New ids at each run, so that a second demo on the same data is no duplicate of the first.
    run = str(time.time_ns())
    document = msgspec.json.decode(example.read_bytes())
    document["hitId"] = f"example-{run}"
    hits = [SampleHit("shop", msgspec.json.encode(document), 204), *sample_hits(HITS, run)]
    wait_for_intake(config)
    say(f"sending the documented example and {len(hits) - 1} more hits to http://{config.intake.listen}/track")
    statuses = asyncio.run(send_hits(f"http://{config.intake.listen}/track", tokens, hits))
    for hit, status in zip(hits, statuses, strict=True):
        if status != hit.expected_status:
            result.problems.append(
                f"a hit of {hit.project or 'nobody'} was answered {status}, not {hit.expected_status}"
            )
    accepted = [hit for hit in hits if hit.expected_status == 204]
    unique = len({hit.body for hit in accepted})
    say(f"answers: {_counts(statuses)}; {unique} different hits were accepted; waiting until all have arrived")
    deadline = time.monotonic() + _ARRIVE_SECONDS
    while True:
        ledger = read_ledger(config)
        pending = sum(sums.pending for sums in ledger.connections.values())
        if ledger.hits.received - before.hits.received >= len(accepted) and not pending:
            break
        if time.monotonic() > deadline:
            result.problems.append(f"after {_ARRIVE_SECONDS:.0f} s {pending} deliveries are still pending")
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
            result.problems.append(f"{what}: {counted}, but {wanted} were expected")
    return result


def print_demo(console: Console, config: Config, result: DemoResult) -> None:
    """The table of what went where."""
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


def print_invitation(console: Console, config: Config, file: Path, exports: Mapping[str, str], token: str) -> None:
    """Print what to try while everything runs; each line can be pasted into another terminal."""
    command, named = this_command(), shlex.quote(str(file.resolve()))
    body = '{"hitId": "my-first", "event": {"name": "Tried", "user": {"userId": "me"}}}'
    lines = [
        f"Everything stays up, Kafka on {config.kafka.listen}; Ctrl-C stops it. Each further hit is shown here.",
        "Send one from another terminal:",
        f"  curl -i -u {token}: -H 'Content-Type: application/json' http://{config.intake.listen}/track \\",
        f"    -d '{body}'",
        "Then look at it:",
        f"  {command} explain my-first -c {named}",
        f"  {command} tail -c {named}",
        f"  {command} tail --refused -c {named}",
        f"  {command} ledger -c {named}",
        "Commands that start a role or send something need the variables of the file, too:",
        *(f"  export {name}={shlex.quote(value)}" for name, value in exports.items()),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def this_command() -> str:
    """Return how this program was started, as it works in another terminal of the same folder or any other."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m pipeline"
    found = shutil.which(started.name)
    if found is not None and Path(found).resolve() == started.resolve():
        return started.name
    return shlex.quote(str(started.absolute()))


def print_further_hits(console: Console, reader: HitReader, stopped: Callable[[], bool]) -> None:
    """Print a line for each hit until `stopped`: time, event, hitId, where it went."""
    while not stopped():
        told, left_out = reader.read()
        for hit in told:
            event, hit_id, fate = (escape_controls(text) or "-" for text in (hit.event, hit.hit_id, hit.fate))
            console.print(f"{hit.at}  {event}  {hit_id}  {fate}", markup=False, highlight=False, soft_wrap=True)
        if left_out:
            console.print(f"and {left_out} more hits, too many at once for a line each; `ledger` counts them")


def _counts(statuses: list[int]) -> str:
    return ", ".join(f"{statuses.count(status)} x {status}" for status in sorted(set(statuses)))
