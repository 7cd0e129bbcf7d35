"""Checks whether Kafka responds to a new client. A process runs one check at a time and shares its result.

During an outage each consumer and producer of a process needs this every few seconds, and a deliverer may have 50 of each.
A client costs several threads and connections, and without sharing there would be 20 new clients per second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache, partial

from confluent_kafka.admin import AdminClient

from pipeline.config.models import KafkaConfig
from pipeline.config.values import Property
from pipeline.kafka.client import client_properties, reaches_kafka
from pipeline.kafka.daemon_thread import close_in_background

FRESH_SECONDS = 2.0
"""A result is shared for this long."""
WAIT_SECONDS = 2.0
"""Longest wait for a check in progress; a check takes one second if no broker responds."""
CLOSING_MOST = 16
"""Limit of clients being closed. Each waits for its threads to resolve the broker's name, which takes up to a minute."""


class SharedCheck:
    """Checks Kafka with a new client from `make`, and shares the result. Any thread may call it."""

    def __init__(self, make: Callable[[], AdminClient], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._check: Future[bool] | None = None
        self._finished_at = float("-inf")
        self._closing = 0

    def result(self) -> bool:
        """Return whether a broker responds to a new client. Blocks for WAIT_SECONDS at most.

        Also returns False while too many earlier clients are still being closed.
        """
        with self._lock:
            check, is_ours = self._check, False
            if check is None or (check.done() and self._clock() - self._finished_at >= FRESH_SECONDS):
                if self._closing >= CLOSING_MOST:
                    return False
                self._check = check = Future()
                is_ours = True
        if is_ours:
            self._run(check)
        try:
            return check.result(WAIT_SECONDS)
        except TimeoutError:
            return False

    def _run(self, check: Future[bool]) -> None:
        responds = False
        try:
            clients = [self._make()]
            with self._lock:
                self._closing += 1
            try:
                responds = reaches_kafka(clients[0])
            finally:
                close_in_background(partial(self._close, clients))
        finally:
            self._finished_at = self._clock()
            check.set_result(responds)

    def _close(self, clients: list[AdminClient]) -> None:
        """Drop the last reference, which blocks until the client's threads end."""
        clients.clear()
        with self._lock:
            self._closing -= 1


def new_client_reaches(kafka: KafkaConfig) -> bool:
    """Return whether a broker responds to a new client, now or within the last FRESH_SECONDS. Blocks for two seconds at most."""
    return _shared_check(kafka.servers, tuple(sorted(kafka.client.items()))).result()


@lru_cache(maxsize=8)
def _shared_check(servers: str, client: tuple[tuple[str, Property], ...]) -> SharedCheck:
    """Return the check of one cluster; a process usually has one cluster."""
    kafka = KafkaConfig(bootstrap_servers=servers, client=dict(client))
    return SharedCheck(lambda: AdminClient(client_properties(kafka)))
