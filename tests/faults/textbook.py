"""Runs the textbook Faust app as a route worker: deduplicates with a table, `topic.send`, offsets on a timer. It must fail the proof.

python -m tests.faults.textbook route -c FILE --slot N      (other roles are the real ones)
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import faust

from pipeline.config import load_config

_CONNECTIONS = {"all": ("shop", "blog"), "shop": ("shop",), "some": ("shop", "blog")}


def build(servers: str) -> faust.App:
    """Return the app, written as in the tutorials, with the routing rules of the proof."""
    app = faust.App(
        "route",
        broker=f"aiokafka://{servers}",
        datadir=tempfile.mkdtemp(),
        store="memory://",
        web_enabled=False,
        topic_partitions=4,
        topic_replication_factor=1,
        consumer_auto_offset_reset="earliest",
    )
    raw = app.topic("hits-raw", key_type=bytes, value_type=bytes, value_serializer="raw")
    outputs = {
        name: app.topic(f"deliveries-{name}", key_type=bytes, value_serializer="raw", value_type=bytes)
        for name in _CONNECTIONS
    }
    seen = app.Table("seen", default=int, partitions=4)

    @app.agent(raw)
    async def route(values: Any) -> None:
        async for event in values.events():
            hit = json.loads(event.value)
            if "event" not in hit or seen[hit["hitId"]]:
                continue
            seen[hit["hitId"]] = 1
            project = event.headers["project"].decode()
            chosen = hit.get("integrations") or {}
            for name, projects in _CONNECTIONS.items():
                if project in projects and chosen.get(name, chosen.get("All", True)) is not False:
                    await outputs[name].send(key=b"k", value=json.dumps({**hit, "projectId": project}).encode())

    return app


def main() -> None:
    """Run the textbook app as the route role; run other roles unchanged."""
    if sys.argv[1] != "route":
        from pipeline.__main__ import main as run_role

        run_role()
        return
    app = build(load_config(Path(sys.argv[sys.argv.index("-c") + 1])).kafka.servers)
    print("partitions assigned: textbook", file=sys.stderr)
    sys.argv = ["textbook", "worker", "--without-web", "-l", "warn"]
    app.main()


if __name__ == "__main__":
    main()
