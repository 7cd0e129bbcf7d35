"""What `up` runs: the roles, and the embedded Kafka."""

from __future__ import annotations

import contextlib
import logging
import math
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.process.parent import TiedChild, exit_name
from pipeline.supervisor.restarts import advice

logger = logging.getLogger("hitrouter.up")

_STOP_SECONDS = 12.0


@dataclass(frozen=True, slots=True)
class End:
    """How a process has ended, why by its own account ("" when it left none), and what its operator can do."""

    how: str
    reason: str
    what_to_do: str


class CannotStart(Exception):
    """A process that did not start; `end` says why."""

    def __init__(self, end: End) -> None:
        super().__init__(end.reason)
        self.end = end


class Supervised(Protocol):
    """One process, started any number of times."""

    name: str

    def start(self) -> None:
        """Start it. Raises CannotStart."""

    def end(self) -> End | None:
        """How it has ended, once; None while it runs."""

    def stop(self) -> None:
        """End it, if it runs."""


class RoleProcess:
    """One role on one slot, with its health at `admin_address`. `environment` is added to ours."""

    def __init__(
        self, role: str, slot: int, file: Path, environment: Mapping[str, str], admin_address: str = "127.0.0.1:0"
    ) -> None:
        self.name = f"{role}-{slot}"
        self.admin_address = admin_address
        self._file = file
        self._arguments = ["-m", "pipeline", role, "-c", str(file), "--slot", str(slot)]
        self._environment = environment
        self._child: TiedChild | None = None

    def start(self) -> None:
        """Start it. Raises CannotStart when the system refuses."""
        try:
            self._child = TiedChild(self._arguments, self._environment)
        except OSError as error:
            limits = "check the machine's limits on memory, processes and open files"
            raise CannotStart(End("not started", str(error), limits)) from error

    @property
    def pid(self) -> int | None:
        """Of the process that runs; None when there is none."""
        child = self._child
        return None if child is None or child.process.returncode is not None else child.process.pid

    def end(self) -> End | None:
        """How it has ended, once."""
        if self._child is None or (code := self._child.process.poll()) is None:
            return None
        reason, self._child = self._child.last_words(), None
        return End(exit_name(code), reason, advice(code, str(self._file)))

    def stop(self) -> None:
        """SIGTERM, and kill -9 after twelve seconds."""
        if self._child is None:
            return
        process = self._child.process
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning("did not stop in time, killed: role=%s waited_seconds=%.0f", self.name, _STOP_SECONDS)
            process.kill()
            process.wait()


class BrokerProcess:
    """The embedded Kafka. Only the first start waits until it answers: roles wait for it later on, and must be watched meanwhile."""

    name = "kafka"

    def __init__(self, kafka: KafkaConfig) -> None:
        self._kafka = kafka
        self._broker = EmbeddedBroker(kafka.listen, kafka.data)
        self._ended = threading.Event()
        """Of the process that runs now, or ran last."""

    def start_first(self, given_up: threading.Event) -> None:
        """Start, and wait until it answers or `given_up` is set. Raises BrokerUnavailable."""
        self._broker.start(given_up=given_up)
        if not given_up.is_set():
            logger.info("Apache Kafka is ready on %s", self._kafka.listen)

    def start(self) -> None:
        """Start it again. Raises CannotStart."""
        try:
            self._broker.start(wait=False)
        except BrokerUnavailable as error:
            raise CannotStart(End("not started", str(error), "mend what its reason names")) from error
        self._ended = threading.Event()
        threading.Thread(target=self._report_ready, args=(self._ended,), name="kafka ready", daemon=True).start()

    def _report_ready(self, ended: threading.Event) -> None:
        """Log when the process that was started again answers; on a thread of its own, until it has `ended`."""
        with contextlib.suppress(BrokerUnavailable):  # it has ended; `end` says why
            self._broker.wait_ready(math.inf, ended)
            if not ended.is_set():
                logger.info("Apache Kafka is ready again on %s", self._kafka.listen)

    def end(self) -> End | None:
        """How it has ended; unlocks its folder."""
        process = self._broker.process
        if process is None or (code := process.poll()) is None:
            return None
        self._ended.set()
        end = End(
            exit_name(code),
            self._broker.failure(),
            f"read {self._kafka.data / 'broker.log'}, and check disk and memory",
        )
        self._broker.close()
        return end

    def stop(self) -> None:
        """A clean stop."""
        self._ended.set()
        self._broker.stop()
