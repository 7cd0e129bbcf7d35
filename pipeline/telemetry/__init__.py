"""Names of metrics, all in one place; roles import them and nothing else makes any."""

from __future__ import annotations

from prometheus_client import Counter

HITS_ACCEPTED = Counter("hitrouter_intake_accepted", "Hits answered with 204: Kafka has them.", ["project"])
HITS_REFUSED = Counter("hitrouter_intake_refused", "Requests refused, by code.", ["project", "code"])
