"""Whether Kafka answers a new client: one question at a time in a process, whose answer all askers share.

In an outage each consumer and each producer of a process asks this every few seconds, and a deliverer may have 50 of each. A client costs
several threads and connections, so a client per asker would be 20 a second.
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
from pipeline.kafka.daemon_thread import close_beside

FRESH_SECONDS = 2.0
"""An answer is shared for this long."""
WAIT_SECONDS = 2.0
"""Longest wait for a question under way, which takes a second where no broker answers."""
CLOSING_MOST = 16
"""Clients that are being closed. Each waits until its threads have looked up their broker's name, which takes up to a minute."""


class SharedQuestion:
    """Asks with a client of its own that `make` returns, and shares the answer. Any thread may call."""

    def __init__(self, make: Callable[[], AdminClient], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: Future[bool] | None = None
        self._answered_at = float("-inf")
        self._closing = 0

    def answer(self) -> bool:
        """Return whether a broker answers a new client. Blocks for WAIT_SECONDS at most.

        False, too, while no client can be made because too many older ones are still being closed.
        """
        with self._lock:
            question, is_ours = self._asked, False
            if question is None or (question.done() and self._clock() - self._answered_at >= FRESH_SECONDS):
                if self._closing >= CLOSING_MOST:
                    return False
                self._asked = question = Future()
                is_ours = True
        if is_ours:
            self._ask(question)
        try:
            return question.result(WAIT_SECONDS)
        except TimeoutError:
            return False

    def _ask(self, question: Future[bool]) -> None:
        answers = False
        try:
            clients = [self._make()]
            with self._lock:
                self._closing += 1
            try:
                answers = reaches_kafka(clients[0])
            finally:
                close_beside(partial(self._close, clients))
        finally:
            self._answered_at = self._clock()
            question.set_result(answers)

    def _close(self, clients: list[AdminClient]) -> None:
        """Drop the last reference, which waits for the client's threads."""
        clients.clear()
        with self._lock:
            self._closing -= 1


def new_client_reaches(kafka: KafkaConfig) -> bool:
    """Return whether a broker answers a new client of this process, now or FRESH_SECONDS ago. Blocks for two seconds at most."""
    return _question(kafka.servers, tuple(sorted(kafka.client.items()))).answer()


@lru_cache(maxsize=8)
def _question(servers: str, client: tuple[tuple[str, Property], ...]) -> SharedQuestion:
    """One for each Kafka; a process has one."""
    kafka = KafkaConfig(bootstrap_servers=servers, client=dict(client))
    return SharedQuestion(lambda: AdminClient(client_properties(kafka)))
