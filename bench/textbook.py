"""(a) The textbook Faust app: JSON values, a table to deduplicate, `topic.send` to three topics, aiokafka.

python -m bench.textbook SERVERS PREFIX
"""

from __future__ import annotations

import sys
import tempfile

import faust

servers, prefix = sys.argv[1:3]
app = faust.App(
    f"{prefix}textbook",
    broker=f"aiokafka://{servers}",
    datadir=tempfile.mkdtemp(),
    store="memory://",
    web_enabled=False,
    topic_partitions=4,
    topic_replication_factor=1,
    consumer_auto_offset_reset="earliest",
)
raw = app.topic(f"{prefix}hits-raw", key_type=bytes, value_serializer="json")
outputs = [
    app.topic(f"{prefix}deliveries-{name}", key_type=bytes, value_serializer="json") for name in ("one", "two", "three")
]
seen = app.Table("seen", default=int, partitions=4)


@app.agent(raw)
async def route(hits: faust.StreamT) -> None:
    """As in the tutorials."""
    async for hit in hits:
        hit_id = hit["hitId"]
        if seen[hit_id]:
            continue
        seen[hit_id] = 1
        hit["context"]["ip"] = "203.0.113.9"
        for output in outputs:
            await output.send(key=hit["event"]["user"]["userId"].encode(), value=hit)


if __name__ == "__main__":
    sys.argv = ["textbook", "worker", "--without-web", "-l", "warn"]
    app.main()
