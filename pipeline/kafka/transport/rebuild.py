"""The state of a new assignment, built beside the poll thread.

A member that is busy in a rebalance callback does not answer the next rebalance, and the whole group waits for it. So the
callback only pauses the partitions; the poll thread goes on polling until the state is there, or the next rebalance has made
it useless.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait

from confluent_kafka import KafkaException
from faust.types import TP

from pipeline.errors import BrokerUnavailable, Stopping, WorkerMustRestart
from pipeline.kafka.daemon_thread import DaemonThread
from pipeline.kafka.group_offsets import recovered_offsets
from pipeline.kafka.transport.settings import TransportSettings

logger = logging.getLogger("hitrouter.kafka.rebuild")

_PAUSES_SECONDS = (0.5, 1.0, 2.0, 5.0)

Rebuilt = tuple[dict[TP, int], Callable[[], None]]
"""Where each partition is read, and what installs its state."""


class Rebuild:
    """One assignment on its way: first the group's offsets are asked for, then `begin` starts the rest on a thread.

    The methods belong to the poll thread. `after` is the rebuild before, whose state is not wanted any more: it ends first, so
    that two never fill the memory at once.
    """

    def __init__(
        self,
        partitions: Sequence[TP],
        settings: TransportSettings,
        closing: threading.Event,
        after: Rebuild | None = None,
    ) -> None:
        self.partitions = list(partitions)
        self._settings = settings
        self._closing = closing
        self._cancelled = threading.Event()
        self._before = None if after is None else after._future
        self._future: Future[Rebuilt | None] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the group's offsets are known."""
        return self._future is not None

    def begin(self, offsets: Mapping[TP, int]) -> None:
        """Build the state on a thread of its own. `offsets` holds NEVER_COMMITTED where the group has none."""
        thread = DaemonThread(f"rebuild-{self._settings.group}")
        self._future = thread.submit(self._build, dict(offsets))
        thread.stop()

    def wait(self, seconds: float) -> bool:
        """Wait for the end. Returns True once there is a result."""
        return self._future is not None and bool(wait([self._future], seconds).done)

    def take(self) -> Rebuilt | None:
        """What came out; None once closing. Raises what nobody foresaw. Call once: the state is not kept here."""
        assert self._future is not None
        rebuilt = self._future.result()
        self._future = Future()
        self._future.set_result(None)
        return rebuilt

    def cancel(self) -> None:
        """Nobody waits for the result any more."""
        self._cancelled.set()

    # On its own thread -------------------------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return self._cancelled.is_set() or self._closing.is_set()

    def _build(self, found: dict[TP, int]) -> Rebuilt | None:
        if self._before is not None:
            wait([self._before])
            self._before = None
        attempt = 0
        while not self._is_over:
            try:
                offsets = recovered_offsets(found, self._settings.recover)
                install = self._settings.listener.rebuild(list(offsets))
                return None if self._is_over else (offsets, install)
            except Stopping:
                return None
            except (BrokerUnavailable, KafkaException, WorkerMustRestart) as error:
                logger.warning("state not rebuilt, will retry: group=%s error=%s", self._settings.group, error)
                self._cancelled.wait(_PAUSES_SECONDS[min(attempt, len(_PAUSES_SECONDS) - 1)])
                attempt += 1
        return None
