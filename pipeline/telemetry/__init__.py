"""Declares metrics of the intake. All metrics of hitrouter are declared in this package, and nowhere else."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

HITS_ACCEPTED = Counter(
    "hitrouter_intake_accepted", "Hits answered with 204 after Kafka acknowledged them.", ["project"]
)
HITS_REFUSED = Counter("hitrouter_intake_refused", "Requests refused, by code.", ["project", "code"])
CONNECTIONS_CLOSED = Counter(
    "hitrouter_intake_connections_closed", "HTTP connections closed because there were too many, by limit.", ["limit"]
)
HITS_SPILLED = Counter(
    "hitrouter_intake_spilled", "Hits written to the spill log on disk, because Kafka did not respond."
)
HITS_CONFLICTING = Counter(
    "hitrouter_hits_conflicting", "Duplicates whose content differs from the first hit with their hitId.", ["project"]
)
SPILL_BYTES = Gauge("hitrouter_intake_spill_bytes", "Bytes in the spill log that are not in Kafka yet.")
