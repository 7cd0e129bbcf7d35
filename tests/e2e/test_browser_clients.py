"""Tests the unmodified browser clients of Segment and RudderStack in a real browser on another origin.

Both ask the intake for their settings, then send. Each message must be on `hits-raw` once: sent while all is well, through an
outage, an hour after it happened, and while its page goes away.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.codec.routed_hit import time_text
from pipeline.config.models import Config
from pipeline.destination.message import Message, read_message
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import read_topic
from tests.devtools import DevTools
from tests.npm import HAS_BROWSER, SCRIPTS, browser, installed
from tests.roles import wait_until

pytestmark = pytest.mark.skipif(not HAS_BROWSER, reason="the packaged browser is for Linux")

USERS = ("segment-visitor", "rudderstack-visitor")
HOUR_SECONDS = 3600.0
SCRIPTS_OF_CLIENTS = {
    "segment.js": "@segment/analytics-next/dist/umd/index.js",
    # The only build of RudderStack that brings its plugins along; the others load them from RudderStack's servers.
    "rudderstack.js": "@rudderstack/analytics-js/dist/npm/modern/bundled/umd/index.js",
}

Found = dict[tuple[str, str], list[tuple[Message, float]]]
"""Keyed by user and name of the message."""


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """Serve a page that loads both clients; the fixture is its URL."""
    folder.mkdir()
    shutil.copy(SCRIPTS / "clients.html", folder)
    for name, path in SCRIPTS_OF_CLIENTS.items():
        shutil.copy(installed() / "node_modules" / path, folder / name)
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/clients.html"
        server.shutdown()


@contextmanager
def visitor(folder: Path) -> Iterator[DevTools]:
    process = browser(folder / "profile", "about:blank")
    try:
        with DevTools(folder / "profile") as tools:
            yield tools
    finally:
        process.kill()
        process.wait()


def visit(tools: DevTools, url: str) -> None:
    tools.navigate(url)
    wait_until(lambda: tools.evaluate("window.ready"), "the clients have asked for their settings")


def read(value: bytes, headers: dict[str, bytes]) -> tuple[Message, float]:
    """Return the message as destinations read it, and the seconds between its time and its arrival."""
    hit = json.loads(value)
    received_ms = int(headers["received-at"])
    context = json.dumps(hit["context"]).encode()
    message = read_message(hit["event"], context, hit["sentAt"], time_text(received_ms))
    return message, (received_ms - message.time_ms) / 1000


@pytest.mark.timeout(700)  # the first session fetches the browser
def test_browser_clients_send_each_message_once(intake_for_clients: Config, tmp_path: Path) -> None:
    config = intake_for_clients
    topic = TopicNames(config.kafka.topic_prefix).hits_raw

    def stored() -> Found:
        found: Found = {}
        for record in read_topic(config.kafka, topic):
            headers: dict[str, bytes] = dict(record.headers() or ())  # type: ignore[arg-type]
            if headers.get("door") == b"public" and headers["endpoint"].startswith(b"/v1/"):
                message, late_seconds = read(record.value() or b"", headers)
                if message.user.get("userId") in USERS:
                    found.setdefault((message.user["userId"], message.name), []).append((message, late_seconds))
        return found

    def wait_for(*names: str) -> None:
        def arrived() -> bool:
            found = stored()
            return all((user, name) in found for user in USERS for name in names)

        wait_until(arrived, f"both clients' {names}")

    with site(tmp_path / "site") as page, visitor(tmp_path) as tools:
        opened = f"{page}?intake=http://{config.intake.listen}"
        visit(tools, opened)
        tools.evaluate(f"visit(segment, '{USERS[0]}'), visit(rudderstack, '{USERS[1]}')")
        wait_for("Identify", "Viewed Page", "Order Completed", "Group")

        tools.block(f"*{config.intake.listen}*")
        tools.evaluate("track('Outage')")
        wait_until(lambda: tools.evaluate("failed.fetch > 0 && failed.xhr > 0"), "attempts of both clients")
        tools.block()
        wait_for("Outage")

        tools.network(online=False)
        tools.evaluate("failed.xhr = 0, track('Offline')")
        wait_until(lambda: tools.evaluate("failed.xhr > 0"), "RudderStack's attempt")
        tools.evaluate(f"ahead = {HOUR_SECONDS * 1000}")
        tools.network(online=True)
        wait_for("Offline")

        visit(tools, f"{opened}&again#beacon")
        tools.evaluate("track('Left')")
        tools.navigate("about:blank")
        wait_for("Left")
    found = stored()
    given: dict[str, dict[str, Any]] = {
        "Identify": {"plan": "free"},
        "Viewed Page": {"colour": "red"},
        "Order Completed": {"value": 1.5, "currency": "EUR"},
        "Group": {"seats": 3},
        **{name: {"n": 1} for name in ("Outage", "Offline", "Left")},
    }
    assert sorted(found) == sorted((user, name) for user in USERS for name in given)
    for (user, name), messages in found.items():
        ((message, late_seconds),) = messages
        told = message.traits if message.type in ("identify", "group") else message.properties
        assert told.items() >= given[name].items(), (user, name)
        shortest = HOUR_SECONDS if name == "Offline" else 0.0
        assert shortest <= late_seconds < shortest + 60, (user, name)
    assert {found[user, "Viewed Page"][0][0].page["title"] for user in USERS} == {"Shop"}
    assert {found[user, "Group"][0][0].group_id for user in USERS} == {"acme"}
