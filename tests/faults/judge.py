"""The verdict on a run that ended without one, from its folder alone.

    python -m tests.faults.judge FOLDER

The journal of such a run is gone; what it sent is read from `hits-raw` instead. The sender repeats each hit until it is
answered, so a marker below the last one that is not there was either lost or under way when the run ended.
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
    """What `traffic.py` meant by a record."""
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
    """Exit code 0 when the topics keep the promise and no marker is missing."""
    folder = Path(sys.argv[1])
    config = load_config(folder / "hitrouter.yaml")
    broker = EmbeddedBroker(str(config.kafka.bootstrap_servers), folder / "kafka" / "node-1")
    broker.start()
    try:
        sent: dict[str, Sent] = {}
        for record in read_topic(config.kafka, TopicNames(config.kafka.topic_prefix).hits_raw):
            headers = dict(record.headers() or [])  # type: ignore[arg-type] # a list, whatever the stub says
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
