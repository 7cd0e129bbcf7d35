"""Watches the processes of `up`: restarts each one that ends, and stops them in the order in which a hit passes them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipeline.config import LAST_GOOD_VARIABLE
from pipeline.config.addresses import admin_address, listeners_of, workers_of
from pipeline.kafka.embedded import fetch_jars
from pipeline.kafka.topics import ensure_topics
from pipeline.process.daemon_thread import call_until
from pipeline.process.ports import BALANCES_PORTS
from pipeline.process.stop import SIGNALS
from pipeline.supervisor.configuration import OpenConfiguration
from pipeline.supervisor.hangs import kill_hung_roles
from pipeline.supervisor.processes import BrokerProcess, CannotStart, ProcessEnd, RoleProcess, Supervised
from pipeline.supervisor.restarts import next_restart

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.2
_FILE_CHECK_SECONDS = 0.5
"""Shorter than the two seconds of the roles, so that a version that one of them uses is also kept."""


@dataclass(slots=True)
class Child:
    """A process and its history. `failures` counts consecutive ends; `started_at` is None while it does not run."""

    process: Supervised
    failures: int = 0
    started_at: float | None = None
    start_at: float = 0.0

    def watch(self, now: float) -> None:
        """Start the process if it is due, or handle its end. `now` is a reading of time.monotonic()."""
        if self.started_at is None:
            if now < self.start_at:
                return
            self.started_at = now
            try:
                self.process.start()
            except CannotStart as error:
                self._ended(error.end, 0.0, now)
        elif (end := self.process.end()) is not None:
            self._ended(end, now - self.started_at, now)

    def _ended(self, end: ProcessEnd, uptime_seconds: float, now: float) -> None:
        restart = next_restart(self.failures, uptime_seconds)
        self.failures, self.started_at, self.start_at = restart.failures, None, now + restart.wait_seconds
        logger.warning(
            "role ended, will restart: role=%s how=%s uptime_seconds=%.1f restart_in_seconds=%.1f reason=%s",
            *(self.process.name, end.how, uptime_seconds, restart.wait_seconds, end.reason or "see its lines above"),
        )
        if restart.keeps_failing:
            logger.error(
                "role keeps failing: role=%s failures=%d advice=%s", self.process.name, restart.failures, end.what_to_do
            )


class Supervisor:
    """Runs all roles of one configuration file on this machine. The end of one role does not affect the others."""

    def __init__(self, configuration: OpenConfiguration) -> None:
        self._configuration = configuration
        config, last_good = configuration.config, configuration.last_good
        environment = {LAST_GOOD_VARIABLE: str(last_good.folder)} if last_good is not None else {}
        self._processes = [
            RoleProcess(role, slot, configuration.file, environment, admin_address(config.admin.listen, role, slot))
            for role, slot in workers_of(config)
        ]
        self.roles = [Child(process) for process in self._processes]
        embedded = config.kafka.bootstrap_servers == "embedded"
        self._broker = BrokerProcess(config.kafka) if embedded else None
        self.stopping = threading.Event()

    def run(self, on_started: Callable[[], None] | None = None) -> None:
        """Run until a stop signal or until `stopping` is set. Calls `on_started` in a thread once the roles are started.

        Raises BrokerUnavailable if Kafka is not available at the start, TopicMismatch if a topic is wrong.
        """
        if self._broker is not None:
            fetch_jars()  # outside the block, so that a signal ends the process at once
        with SIGNALS.running(self.stopping.set):
            try:
                self._run(on_started)
            finally:
                for child in self.roles:
                    child.process.stop()
                if self._broker is not None:
                    self._broker.stop()

    def _run(self, on_started: Callable[[], None] | None) -> None:
        if (workers := self._configuration.config.intake.workers) > 1 and not BALANCES_PORTS:
            logger.warning("this system gives all HTTP connections of a port to one process: workers=%d", workers)
        children = list(self.roles)
        if self._broker is not None:
            started_at = time.monotonic()
            self._broker.start_first(self.stopping)
            children.insert(0, Child(self._broker, started_at=started_at))
        call_until(partial(ensure_topics, self._configuration.config), self.stopping)
        if not self.stopping.is_set():
            for listener in listeners_of(self._configuration.config):
                logger.info("starting listener: owner=%s use=%s address=%s", listener.owner, listener.use, listener.url)
        watched = [process for process in self._processes if not process.admin_address.endswith(":0")]
        threading.Thread(
            target=kill_hung_roles, args=(watched, self.stopping, os.kill), name="hangs", daemon=True
        ).start()
        next_file_check = 0.0
        while not self.stopping.is_set():
            now = time.monotonic()
            if now >= next_file_check:
                next_file_check = now + _FILE_CHECK_SECONDS
                self._configuration.keep_changes()
            for child in children:
                child.watch(now)
            if on_started is not None:
                threading.Thread(target=on_started, daemon=True).start()
                on_started = None
            self.stopping.wait(_TICK_SECONDS)
