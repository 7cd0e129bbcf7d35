"""(c) Quix Streams with its exactly-once guarantee: state to deduplicate, three outputs. Runs in a virtual environment of its own.

python quix_app.py SERVERS PREFIX
"""

from __future__ import annotations

import sys
import tempfile

from quixstreams import Application

servers, prefix = sys.argv[1:3]
app = Application(
    broker_address=servers,
    consumer_group=f"{prefix}quix",
    processing_guarantee="exactly-once",
    auto_offset_reset="earliest",
    state_dir=tempfile.mkdtemp(),
    commit_interval=0.5,  # its transactions; the default of 5 s would be cheaper still, but too coarse to measure
    loglevel="WARNING",
)
raw = app.topic(f"{prefix}hits-raw", key_deserializer="bytes", value_deserializer="json")
outputs = [
    app.topic(f"{prefix}deliveries-{name}", key_serializer="bytes", value_serializer="json")
    for name in ("one", "two", "three")
]


def is_new(hit: dict, state: object) -> bool:
    """Not seen before."""
    if state.get("seen"):
        return False
    state.set("seen", 1)
    return True


def enrich(hit: dict) -> dict:
    """The ip into the context."""
    hit["context"]["ip"] = "203.0.113.9"
    return hit


hits = app.dataframe(raw).filter(is_new, stateful=True).apply(enrich)
for output in outputs:
    hits = hits.to_topic(output)
app.run()
