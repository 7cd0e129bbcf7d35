"""Runs roles as processes for fault injection, and restarts each one that ends, as a supervisor does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.models import Config
from pipeline.kafka.topics import ensure_topics
from tests.roles import written


class Worker:
    """One role on one slot. `launcher` is the module to run, `pipeline` or a mutant of it."""

    def __init__(self, role: str, slot: int, file: Path, launcher: tuple[str, ...] = ("pipeline",)) -> None:
        self.role = role
        self.slot = slot
        self.starts = 0
        self.exit_codes: list[int] = []
        self.log = file.parent / f"{role}-{slot}.log"
        self._command = [sys.executable, "-m", *launcher, role, "-c", str(file), "--slot", str(slot)]
        self._wanted = False
        self._life_from = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self) -> None:
        """Start the role, and restart it whenever it ends."""
        with self._lock:
            self._wanted = True
            self._spawn()

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after 15 s. Raises AssertionError if SIGKILL was needed."""
        with self._lock:
            self._wanted = False
            process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.role}-{self.slot} did not stop within 15 s of SIGTERM") from None

    def kill(self) -> None:
        """Send SIGKILL; the role is restarted."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        with self._lock:
            if self._process is not None:
                self._process.send_signal(number)

    def log_text(self) -> str:
        """Return the log of all its instances."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def at_work(self) -> bool:
        """Whether the current instance has got partitions."""
        return "partitions assigned: " in self.log_text()[self._life_from :]

    def _spawn(self) -> None:
        self._life_from = len(self.log_text())
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ}
            )
        self.starts += 1

    def _watch(self) -> None:
        while True:
            time.sleep(0.1)
            with self._lock:
                if self._process is None or self._process.poll() is None:
                    continue
                self.exit_codes.append(self._process.returncode)
                self._process = None
                if self._wanted:
                    self._spawn()


@contextmanager
def route_and_deliver(config: Config, folder: Path) -> Iterator[tuple[Worker, Worker]]:
    """Run a router and a deliverer of `config`; stop them at the end, the deliverer first."""
    ensure_topics(config)
    file = written(config, folder)
    route, deliver = Worker("route", 0, file), Worker("deliver", 0, file)
    try:
        route.start()
        deliver.start()
        yield route, deliver
    finally:
        stop_all((deliver, route))


def stop_all(workers: Iterable[Worker]) -> None:
    """Stop the workers one after the other. A worker that had to be killed is only reported on stderr."""
    for worker in workers:
        try:
            worker.stop()
        except AssertionError as error:
            print(error, file=sys.stderr)
