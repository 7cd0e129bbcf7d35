"""`up`: every role as a child process, started again alone when it ends, stopped in the order of the way of a hit."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.addresses import address_table, workers_of
from pipeline.config.models import Config
from pipeline.errors import BrokerUnavailable, ConfigurationError
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import die_with_parent
from pipeline.kafka.topics import ensure_topics

logger = logging.getLogger("hitrouter.up")

_TICK_SECONDS = 0.2
_STOP_SECONDS = 12.0
_STEADY_SECONDS = 30.0
_BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
_EXIT_CONFIGURATION = 1


@dataclass(slots=True)
class Child:
    """One role's process; `failures` counts its ends in a row."""

    role: str
    slot: int
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started: float = 0.0
    start_at: float = field(default=0.0)

    @property
    def name(self) -> str:
        """For logs."""
        return f"{self.role}-{self.slot}"


class Supervisor:
    """Runs all roles of one configuration file on this machine."""

    def __init__(self, file: Path, config: Config) -> None:
        self._file = file
        self._config = config
        self._broker: EmbeddedBroker | None = None
        self.children = [Child(role, slot) for role, slot in workers_of(config)]
        self.stopping = threading.Event()

    def run(self, when_up: Callable[[], None] | None = None) -> None:
        """Run until SIGTERM, SIGINT or `stopping`; `when_up` is called in a thread once the roles are started.

        Raises ConfigurationError when a role refuses the configuration, BrokerUnavailable when Kafka can't start.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())
        try:
            self._start_kafka()
            ensure_topics(self._config)
            logger.info("addresses:\n%s", address_table(self._config))
            for child in self.children:
                self._start(child)
            if when_up is not None:
                threading.Thread(target=when_up, daemon=True).start()
            while not self.stopping.wait(_TICK_SECONDS):
                self._watch()
        finally:
            self._stop()

    def _start_kafka(self) -> None:
        kafka = self._config.kafka
        if kafka.bootstrap_servers != "embedded":
            return
        self._broker = EmbeddedBroker(kafka.listen, kafka.data)
        self._broker.start()
        logger.info("Apache Kafka is ready on %s", kafka.listen)

    def _start(self, child: Child) -> None:
        command = [sys.executable, "-m", "pipeline", child.role, "-c", str(self._file), "--slot", str(child.slot)]
        child.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
            start_new_session=True,  # Ctrl-C reaches us only, and we stop them in order
        )
        child.started = time.monotonic()

    def _watch(self) -> None:
        now = time.monotonic()
        if self._broker is not None and self._broker.process is not None and self._broker.process.poll() is not None:
            logger.error("%s; it is started again", self._broker.failure())
            self._broker.close()
            try:
                self._broker.start()
            except BrokerUnavailable as error:
                logger.error("%s", error)
        for child in self.children:
            if child.process is None:
                if now >= child.start_at:
                    self._start(child)
                continue
            code = child.process.poll()
            if code is None:
                continue
            child.process = None
            if code == _EXIT_CONFIGURATION:
                raise ConfigurationError([f"{child.name} refuses to start; its message stands above"])
            child.failures = 0 if now - child.started > _STEADY_SECONDS else child.failures + 1
            wait = _BACKOFF_SECONDS[min(child.failures, len(_BACKOFF_SECONDS) - 1)]
            child.start_at = now + wait
            logger.warning("%s ended with exit code %s; it is started again in %.1f s", child.name, code, wait)

    def _stop(self) -> None:
        for child in self.children:
            process = child.process
            if process is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                logger.warning("%s did not stop within %.0f s and is killed", child.name, _STOP_SECONDS)
                process.kill()
                process.wait()
        if self._broker is not None:
            self._broker.stop()
        logger.info("stopped")
