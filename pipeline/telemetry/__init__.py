"""Names of metrics, all in one place; roles import them and nothing else makes any."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

HITS_ACCEPTED = Counter("hitrouter_intake_accepted", "Hits answered with 204: Kafka has them.", ["project"])
HITS_REFUSED = Counter("hitrouter_intake_refused", "Requests refused, by code.", ["project", "code"])
CONNECTIONS_CLOSED = Counter(
    "hitrouter_intake_connections_closed", "HTTP connections closed because there were too many, by limit.", ["limit"]
)
HITS_SPILLED = Counter(
    "hitrouter_intake_spilled", "Hits answered from this machine's disk, because Kafka did not answer."
)
HITS_CONFLICTING = Counter(
    "hitrouter_hits_conflicting", "Duplicates whose content is not that of the first with their hitId.", ["project"]
)
SPILL_BYTES = Gauge("hitrouter_intake_spill_bytes", "Bytes on this machine's disk that are not in Kafka yet.")
