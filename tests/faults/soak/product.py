"""The product in a soak as an operator runs it: `hitrouter up` on a broker that ages quickly, and commands beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config, load_config
from pipeline.kafka.embedded import EmbeddedBroker, broker
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.embedded.properties import Node
from tests.faults.soak.sender import RARE, TOKEN
from tests.roles import free_admin_listen

AGEING = {
    "log.retention.check.interval.ms": 5_000,
    "log.segment.delete.delay.ms": 1_000,
    "transactional.id.expiration.ms": 30_000,
    "transaction.remove.expired.transaction.cleanup.interval.ms": 5_000,
    "producer.id.expiration.ms": 30_000,
}
"""Broker settings that make weeks of minutes."""
ROLES = ("intake", "route", "deliver")


class AgeingBroker(EmbeddedBroker):
    """An embedded node on which records, transactional ids and producer ids grow old within minutes."""

    def start(self, wait: bool = True) -> None:
        """Start with `AGEING` behind the usual settings."""
        usual = broker.server_properties

        def ageing(node: Node, nodes: list[Node]) -> str:
            return usual(node, nodes) + "".join(f"{name}={value}\n" for name, value in AGEING.items())

        broker.server_properties = ageing
        try:
            super().start(wait)
        finally:
            broker.server_properties = usual


class Product:
    """`hitrouter up` with two webhooks, a rare one and a topic for everything; `retention` in seconds for all topics."""

    def __init__(self, folder: Path, hooks: dict[str, str], retention: int) -> None:
        self.folder = folder
        self.broker = AgeingBroker(f"127.0.0.1:{free_port()}", folder / "kafka")
        self.file = folder / "hitrouter.yaml"
        self._log = folder / "up.log"
        self._process: subprocess.Popen[bytes] | None = None
        kept = f"{retention}s"
        webhook = {"destination": "Webhook", "delivery": {"allow_private": True, "longest_backoff": "5s"}}
        self.settings: dict[str, Any] = {
            "kafka": {
                "bootstrap_servers": self.broker.bootstrap_servers,
                "partitions": 4,
                "retention": dict.fromkeys(("hits_raw", "deliveries", "dead_letters", "ledger"), kept),
            },
            "intake": {"listen": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": free_admin_listen()},
            "dedupe": {"window": kept},
            "projects": {"shop": {"tokens": [TOKEN]}},
            "connections": {
                "everything": {"destination": "Kafka"},
                **{name: {**webhook, "settings": {"url": url}} for name, url in hooks.items()},
            },
        }
        self.settings["connections"][RARE]["events"] = ["Rare"]
        self.write()

    def write(self) -> None:
        """Write the file as `settings` say now."""
        self.good = yaml.safe_dump(self.settings)
        self.file.write_text(self.good)

    @property
    def config(self) -> Config:
        """The good version."""
        return load_config(self.file)

    def start(self) -> None:
        """Start Kafka and `up`."""
        self.broker.start()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "up", "-c", str(self.file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH")))),
                },
            )

    @property
    def is_running(self) -> bool:
        """False once `up` has ended by itself, which it never may."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """SIGTERM to `up`, then stop Kafka. Returns the exit code of `up`."""
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self.broker.stop()
        return code

    def log_text(self) -> str:
        """Everything that `up` and its roles have logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def pids(self, role: str) -> list[int]:
        """The processes of `role` that run now."""
        assert self._process is not None
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except (OSError, IndexError, ValueError):
                continue
            if parent == self._process.pid and role.encode() in command:
                found.append(int(entry.name))
        return found

    def hurt(self, role: str, number: signal.Signals) -> bool:
        """Send a signal to a process of `role`; False when there is none now."""
        for pid in self.pids(role)[:1]:
            os.kill(pid, number)
            return True
        return False

    def command(self, *arguments: str, seconds: float = 120.0) -> tuple[int, str, str, float]:
        """Run a command of `hitrouter`. Returns its exit code, its output and its errors, and the seconds that it took."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments, "-c", str(self.file)],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr, time.monotonic() - began

    def edit(self, text: str) -> None:
        """Replace the file as an editor does."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)

    def ledger(self) -> tuple[int, dict[str, Any], float]:
        """Run `hitrouter ledger --json`. Returns exit code, document and seconds."""
        code, output, errors, seconds = self.command("ledger", "--json")
        return code, json.loads(output) if output.startswith("{") else {"problems": [errors]}, seconds
