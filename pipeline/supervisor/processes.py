"""Starts and ends the processes of `up`: the roles, and the embedded Kafka."""

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
from pipeline.process.log_format import PROCESS_VARIABLE
from pipeline.process.parent import TiedChild, exit_name
from pipeline.supervisor.restarts import advice

logger = logging.getLogger(__name__)

_STOP_SECONDS = 12.0


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a process ended, the reason that it reported ("" if none), and what its operator can do."""

    how: str
    reason: str
    what_to_do: str


class CannotStart(Exception):
    """A process could not be started; `end` holds the reason."""

    def __init__(self, end: ProcessEnd) -> None:
        super().__init__(end.reason)
        self.end = end


class Supervised(Protocol):
    """A process that can be started again after its end."""

    name: str

    def start(self) -> None:
        """Start the process. Raises CannotStart."""

    def end(self) -> ProcessEnd | None:
        """Return how the process ended, once; None while it runs."""

    def stop(self) -> None:
        """Stop the process, if it runs."""


class RoleProcess:
    """One role on one slot, with its health at `admin_address`. `environment` is added to that of this process."""

    def __init__(
        self, role: str, slot: int, file: Path, environment: Mapping[str, str], admin_address: str = "127.0.0.1:0"
    ) -> None:
        self.name = f"{role}-{slot}"
        self.admin_address = admin_address
        self._file = file
        self._arguments = ["-m", "pipeline", role, "-c", str(file), "--slot", str(slot)]
        self._environment = {**environment, PROCESS_VARIABLE: self.name}
        self._child: TiedChild | None = None

    def start(self) -> None:
        """Start the process. Raises CannotStart if the system refuses."""
        try:
            self._child = TiedChild(self._arguments, self._environment)
        except OSError as error:
            limits = "check the machine's limits on memory, processes and open files"
            raise CannotStart(ProcessEnd("not started", str(error), limits)) from error

    @property
    def pid(self) -> int | None:
        """Process id, or None if the role does not run."""
        child = self._child
        return None if child is None or child.process.returncode is not None else child.process.pid

    def end(self) -> ProcessEnd | None:
        """Return how the process ended, once; None while it runs."""
        if self._child is None or (code := self._child.process.poll()) is None:
            return None
        reason, self._child = self._child.exit_reason(), None
        return ProcessEnd(exit_name(code), reason, advice(code, str(self._file)))

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after twelve seconds."""
        if self._child is None:
            return
        process = self._child.process
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning(
                "role killed, it did not stop in time: role=%s waited_seconds=%.0f", self.name, _STOP_SECONDS
            )
            process.kill()
            process.wait()


class BrokerProcess:
    """The embedded Kafka.

    Only the first start waits until Kafka responds. After a restart the roles wait for it themselves, and `up` must watch them.
    """

    name = "kafka"

    def __init__(self, kafka: KafkaConfig) -> None:
        self._kafka = kafka
        self._broker = EmbeddedBroker(kafka.listen, kafka.data)
        self._ended = threading.Event()
        """Set when the current or last process has ended."""

    def start_first(self, given_up: threading.Event) -> None:
        """Start Kafka, and wait until it responds or `given_up` is set. Raises BrokerUnavailable."""
        self._broker.start(given_up=given_up)
        if not given_up.is_set():
            logger.info("kafka ready: address=%s", self._kafka.listen)

    def start(self) -> None:
        """Restart Kafka. Raises CannotStart."""
        try:
            self._broker.start(wait=False)
        except BrokerUnavailable as error:
            raise CannotStart(ProcessEnd("not started", str(error), "correct what the reason names")) from error
        self._ended = threading.Event()
        threading.Thread(target=self._report_ready, args=(self._ended,), name="kafka ready", daemon=True).start()

    def _report_ready(self, ended: threading.Event) -> None:
        """Log when the restarted Kafka responds, unless it has `ended`. Runs on its own thread."""
        with contextlib.suppress(BrokerUnavailable):  # the process ended; `end` returns the reason
            self._broker.wait_ready(math.inf, ended)
            if not ended.is_set():
                logger.info("kafka ready again: address=%s", self._kafka.listen)

    def end(self) -> ProcessEnd | None:
        """Return how the process ended, once, and unlock its folder; None while it runs."""
        process = self._broker.process
        if process is None or (code := process.poll()) is None:
            return None
        self._ended.set()
        end = ProcessEnd(
            exit_name(code),
            self._broker.failure(),
            f"read {self._kafka.data / 'broker.log'}, and check disk and memory",
        )
        self._broker.close()
        return end

    def stop(self) -> None:
        """Stop Kafka cleanly."""
        self._ended.set()
        self._broker.stop()
