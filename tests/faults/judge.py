"""Judges a run that was interrupted, from its folder.

    python -m tests.faults.judge FOLDER

The journal of such a run is gone, so the hits are read from `hits-raw` instead. The sender repeats each hit until it is
answered. A missing marker below the last one was therefore lost, or still being sent when the run ended.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.config import load_config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import read_topic
from tests.faults.checker import Sent, check
from tests.faults.dump import read_found, wait_until_routed
from tests.faults.traffic import CONNECTIONS


def sent_of(value: bytes, project: str) -> Sent:
    """Return the journal entry that `traffic.py` had for a record."""
    try:
        hit = json.loads(value)
    except ValueError:
        return Sent(value.split(b'"')[3].decode(), value, project, frozenset(), stored=True, dead=True)
    wanted = {name for name, projects in CONNECTIONS.items() if projects is None or project in projects}
    integrations = hit.get("integrations", {})
    if integrations.get("All") is False:
        wanted &= set(integrations)
    wanted -= {name for name, choice in integrations.items() if choice is False}
    return Sent(hit["event"]["marker"], value, project, frozenset(wanted), stored=True)


def main() -> int:
    """Return 0 if the verdict has no errors and no marker is missing, otherwise 1."""
    folder = Path(sys.argv[1])
    config = load_config(folder / "hitrouter.yaml")
    broker = EmbeddedBroker(str(config.kafka.bootstrap_servers), folder / "kafka" / "node-1")
    broker.start()
    try:
        sent: dict[str, Sent] = {}
        for record in read_topic(config.kafka, TopicNames(config.kafka.topic_prefix).hits_raw):
            headers = dict(record.headers() or [])  # type: ignore[arg-type] # a list; the type stub is wrong
            project = (headers.get("project") or b"").decode()
            found = sent_of(record.value() or b"", project)
            sent.setdefault(found.marker, found)
        routed = wait_until_routed(config, 5.0)
        verdict = check(sent.values(), read_found(config)[0])
    finally:
        broker.stop()
    numbers = {int(marker[1:]) for marker in sent}
    missing = sorted(set(range(max(numbers) + 1)) - numbers)
    print(
        f"{len(sent)} hits on hits-raw, read to its end: {routed}; {len(missing)} markers are not there: {missing[:5]}"
    )
    print(f"{verdict}")
    for kind in verdict.kinds:
        print(f"  {kind}: {getattr(verdict, kind)[:5]}")
    return 0 if routed and not verdict.kinds and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
