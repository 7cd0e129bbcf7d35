"""Watching the processes of `up`: started again alone when they end, stopped in the order of the way of a hit."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipeline.config import LAST_GOOD_VARIABLE
from pipeline.config.addresses import address_table, admin_address, workers_of
from pipeline.kafka.embedded import fetch_jars
from pipeline.kafka.topics import ensure_topics
from pipeline.process.daemon_thread import call_until
from pipeline.process.ports import BALANCES_PORTS
from pipeline.process.stop import SIGNALS
from pipeline.supervisor.configuration import OpenConfiguration
from pipeline.supervisor.hangs import end_what_hangs
from pipeline.supervisor.processes import BrokerProcess, CannotStart, End, RoleProcess, Supervised
from pipeline.supervisor.restarts import after_end

logger = logging.getLogger("hitrouter.up")

_TICK_SECONDS = 0.2
_FILE_SECONDS = 0.5
"""Roles look every two seconds: a version that one of them has taken over is kept."""


@dataclass(slots=True)
class Child:
    """A process and its history. `failures` counts its ends in a row; `started_at` is None while it does not run."""

    process: Supervised
    failures: int = 0
    started_at: float | None = None
    start_at: float = 0.0

    def watch(self, now: float) -> None:
        """Start it when it is time to; notice its end. Times are of time.monotonic."""
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

    def _ended(self, end: End, lived_seconds: float, now: float) -> None:
        restart = after_end(self.failures, lived_seconds)
        self.failures, self.started_at, self.start_at = restart.failures, None, now + restart.wait_seconds
        logger.warning(
            "ended, will be started again: role=%s how=%s lived_seconds=%.1f restart_in_seconds=%.1f reason=%s",
            *(self.process.name, end.how, lived_seconds, restart.wait_seconds, end.reason or "see its lines above"),
        )
        if restart.keeps_failing:
            logger.error("keeps failing: role=%s failures=%d; %s", self.process.name, restart.failures, end.what_to_do)


class Supervisor:
    """Runs all roles of one configuration file on this machine. No role's end is the end of the others."""

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

    def run(self, when_up: Callable[[], None] | None = None) -> None:
        """Run until a stop signal or `stopping`; `when_up` is called in a thread once the roles are started.

        Raises BrokerUnavailable and TopicMismatch when Kafka or its topics are not fit at the start.
        """
        if self._broker is not None:
            fetch_jars()  # before there is something to stop: a signal ends it at once
        with SIGNALS.running(self.stopping.set):
            try:
                self._run(when_up)
            finally:
                for child in self.roles:
                    child.process.stop()
                if self._broker is not None:
                    self._broker.stop()

    def _run(self, when_up: Callable[[], None] | None) -> None:
        if (workers := self._configuration.config.intake.workers) > 1 and not BALANCES_PORTS:
            logger.warning(
                "intake.workers=%d: this system gives all HTTP connections of a port to one process", workers
            )
        children = list(self.roles)
        if self._broker is not None:
            started_at = time.monotonic()
            self._broker.start_first(self.stopping)
            children.insert(0, Child(self._broker, started_at=started_at))
        call_until(partial(ensure_topics, self._configuration.config), self.stopping)
        if not self.stopping.is_set():
            logger.info("addresses:\n%s", address_table(self._configuration.config))
        watched = [process for process in self._processes if not process.admin_address.endswith(":0")]
        threading.Thread(
            target=end_what_hangs, args=(watched, self.stopping, os.kill), name="hangs", daemon=True
        ).start()
        file_at = 0.0
        while not self.stopping.is_set():
            now = time.monotonic()
            if now >= file_at:
                file_at = now + _FILE_SECONDS
                self._configuration.keep_changes()
            for child in children:
                child.watch(now)
            if when_up is not None:
                threading.Thread(target=when_up, daemon=True).start()
                when_up = None
            self.stopping.wait(_TICK_SECONDS)
