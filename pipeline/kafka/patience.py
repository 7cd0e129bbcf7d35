"""Repeats requests to Kafka with short timeouts, so that a request lost in a broker restart costs seconds only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException

PATIENCE_SECONDS = 30.0
"""How long a role repeats a request before it fails."""
SLICE_SECONDS = 2.0
"""Timeout of the first request."""
_SLICE_GROWTH = 1.5
_LONGEST_SLICE_SECONDS = 10.0
_SHORTEST_SLICE_SECONDS = 0.1
_PAUSE_SECONDS = 0.1

OUTAGES = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE})
"""Error codes that mean: no broker is connected."""
TEMPORARY = OUTAGES | frozenset(
    {
        # No response.
        *(KafkaError._TIMED_OUT, KafkaError.REQUEST_TIMED_OUT, KafkaError.NETWORK_EXCEPTION),
        KafkaError.BROKER_NOT_AVAILABLE,
        # The broker does not know the newest leader, coordinator, controller or topic yet.
        *(KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.REPLICA_NOT_AVAILABLE),
        *(KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION),
        *(KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR),
        *(KafkaError._WAIT_COORD, KafkaError.NOT_CONTROLLER, KafkaError.OFFSET_NOT_AVAILABLE),
        # A pending transaction blocks the group's offsets, or the broker throttles this client.
        *(KafkaError.UNSTABLE_OFFSET_COMMIT, KafkaError.THROTTLING_QUOTA_EXCEEDED),
    }
)
"""Error codes that are temporary: the same request may succeed later."""

T = TypeVar("T")


def in_slices(
    call: Callable[[float], T],
    patience_seconds: float = PATIENCE_SECONDS,
    slice_seconds: float = SLICE_SECONDS,
    temporary: frozenset[int] = TEMPORARY,
) -> T:
    """Return the result of `call(timeout_seconds)`; repeat it after a timeout or an error code in `temporary`.

    Each timeout makes the next one 1.5 times as long, up to 10 s, so that a slow broker can respond, too. `call` must be
    safe to repeat, and may raise KafkaException or TimeoutError. Blocks; runs on the caller's thread.

    Raises the last KafkaException after `patience_seconds`, and any other error at once.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        began = time.monotonic()
        timeout_seconds = max(_SHORTEST_SLICE_SECONDS, min(slice_seconds, deadline - began))
        try:
            return call(timeout_seconds)
        except TimeoutError as error:
            failure = KafkaException(KafkaError(KafkaError._TIMED_OUT, f"no response within {timeout_seconds:.1f} s"))
            failure.__cause__ = error
        except KafkaException as error:
            if error.args[0].code() not in temporary:
                raise
            failure = error
        now = time.monotonic()
        if now + _PAUSE_SECONDS >= deadline:
            raise failure
        if now - began >= timeout_seconds * 0.9:
            slice_seconds = min(slice_seconds * _SLICE_GROWTH, _LONGEST_SLICE_SECONDS)
        time.sleep(_PAUSE_SECONDS)
