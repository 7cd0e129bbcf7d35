"""The intake's process: sockets, producer, health. After SIGTERM it answers requests in flight and ends within 10 s."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvloop

from pipeline.config import Watched
from pipeline.config.addresses import admin_address
from pipeline.config.models import Config, IntakeConfig
from pipeline.errors import BrokerUnavailable, ConfigurationError
from pipeline.intake.admission import Admission
from pipeline.intake.anonymizer import Anonymizer
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.open_connections import OpenConnections
from pipeline.intake.protocol import IntakeProtocol
from pipeline.intake.readiness import Spill, Stores, conditions_of
from pipeline.intake.refused import RefusedRequests
from pipeline.intake.server_state import ServerState
from pipeline.intake.spill import SpillingStore, SpillLog, left_behind
from pipeline.intake.tokens import Tokens
from pipeline.kafka.producer import AcknowledgingProducer
from pipeline.kafka.reachability import Reachability
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.process.daemon_thread import in_daemon_thread
from pipeline.process.garbage import reduce_gc_frequency
from pipeline.process.limits import raise_open_file_limit
from pipeline.process.ports import SHARE_PORT
from pipeline.process.stop import SIGNALS
from pipeline.stages.accept import Accepted
from pipeline.telemetry.admin import admin_endpoint
from pipeline.telemetry.health import Health
from pipeline.telemetry.readiness import Condition, refused_file
from schemas import read_schema

logger = logging.getLogger(__name__)

_SWEEP_SECONDS = 0.5
_DRAIN_SECONDS = 8.0
_END_SECONDS = 11.0  # the supervisor kills after 12 s
_RELOAD_SECONDS = 2.0
_CHECK_SECONDS = 5.0


class _KafkaStore:
    """Refuses hits until the topics are checked."""

    def __init__(self, producer: AcknowledgingProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self.problem: str | None = "the topics are not checked yet"
        """Why the topics cannot be used yet; None once they are checked."""

    @property
    def checked(self) -> bool:
        """Whether the topics are checked."""
        return self.problem is None

    def store(self, hit: Accepted, report: Any) -> bool:
        return self.checked and self._producer.send(self._topic, hit.value, hit.key, hit.headers, report)


def run_intake(watched: Watched, slot: int = 0) -> None:
    """Serve until SIGTERM. Several processes may share the port; each `slot` has its own admin port.

    It listens before Kafka is available, since a 503 is better for senders than a refused connection. It polls `watched` every two
    seconds, and applies changed projects. Raises TopicMismatch, ConfigurationError.
    """
    raise_open_file_limit()
    health = Health("intake", slot)
    health.readiness.add(refused_file(lambda: watched.refused))
    with admin_endpoint(health, admin_address(watched.config.admin.listen, "intake", slot)):
        uvloop.run(_serve(watched, slot, health))


class _StoreHealth:
    """Probes Kafka every few seconds, and reports the state of Kafka and the spill log."""

    def __init__(self, plain: _KafkaStore, spilling: SpillingStore | None, producer: AcknowledgingProducer, topic: str):
        self._plain = plain
        self._spilling = spilling
        self._producer = producer
        self._topic = topic
        self._kafka = Reachability()

    def look(self) -> float:
        """Probe Kafka; blocks for up to two seconds. Returns the seconds until the next probe."""
        if self._plain.checked:  # before that, the probe could auto-create a missing topic
            self._kafka.observe(self._producer.unreachable(self._topic), time.monotonic())
        return self._kafka.pause_seconds

    def conditions(self, now: float) -> Iterator[Condition]:
        """Yield the lines of /readyz."""
        away = self._kafka.problem
        since = self._kafka.since if away is not None else None
        spill = None
        if self._spilling is not None:
            spill = Spill(self._spilling.no_room(now), self._spilling.waiting_bytes)
        problem = away or self._producer.unacknowledged(now)
        yield from conditions_of(Stores(self._plain.problem, problem, since, spill))


async def _serve(watched: Watched, slot: int, health: Health) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        loop.call_soon_threadsafe(stopping.set)

    with SIGNALS.running(stop, _END_SECONDS):
        await _serve_until(stopping, watched, slot, health)


async def _serve_until(stopping: asyncio.Event, watched: Watched, slot: int, health: Health) -> None:
    config = watched.config
    loop = asyncio.get_running_loop()
    health.stops_when(stopping.is_set)
    producer = AcknowledgingProducer(config.kafka)
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    plain = _KafkaStore(producer, topic)
    spilling: SpillingStore | None = None
    if slot == 0:
        _report_left_behind(config.intake)
    if config.intake.on_kafka_failure == "spill":
        spill = config.intake.spill
        spilling = SpillingStore(producer, topic, SpillLog(spill.folder / str(slot), spill.max_bytes))
    tokens = Tokens(config.projects)
    anonymizer = Anonymizer(spilling or plain, config.enrich.ip.anonymize)
    addresses = ClientAddress(config.intake.trusted_proxies)
    state = ServerState(
        Endpoints(tokens),
        anonymizer,
        json.dumps(read_schema("openapi.json")).encode(),
        addresses,
        anonymizer.address,
        OpenConnections(most_per_address=config.intake.connections_per_address, has_no_limit=addresses.trusts),
        refused=RefusedRequests(tokens.is_secret, hides_addresses=lambda: anonymizer.is_on),
        admission=Admission(config.projects, config.intake.workers),
        public_url=config.intake.public_url,
    )
    connections = state.connections
    stores = _StoreHealth(plain, spilling, producer, topic)
    health.readiness.add(stores.conditions)
    health.pages["/refused"] = state.refused.page
    server = await loop.create_server(
        lambda: IntakeProtocol(state), sock=listening_socket(config.intake.listen), backlog=1024
    )
    health.started()
    with health.watched(stores.look):
        opening = asyncio.create_task(_open(config, plain))
        if spilling is not None:
            logger.info("ready: url=%s", f"http://{config.intake.listen}/track")
        reduce_gc_frequency()
        asked_at = time.monotonic()
        while not stopping.is_set():
            try:
                await asyncio.wait_for(stopping.wait(), _SWEEP_SECONDS)
            except TimeoutError:
                if opening.done():
                    opening.result()
                now = time.monotonic()
                health.liveness.beat(now)
                state.refresh_date()
                state.admission.sweep(now)
                for connection in connections:
                    connection.sweep(now)
                if now > asked_at + _RELOAD_SECONDS:
                    asked_at = now
                    changed = watched.changed()
                    if changed is not None:
                        tokens.replace(changed.projects)
                        state.admission.replace(changed.projects)
                        anonymizer.is_on = changed.enrich.ip.anonymize
                        state.version += 1
    server.close()
    opening.cancel()
    for connection in connections:
        connection.drain()
    deadline = time.monotonic() + _DRAIN_SECONDS
    while any(connection.busy for connection in connections) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    if spilling is not None:
        await spilling.close(max(0.1, deadline - time.monotonic()))
    await producer.close(max(0.1, deadline - time.monotonic()))


def _report_left_behind(intake: IntakeConfig) -> None:
    """Report spilled hits that no process sends to Kafka, left by another configuration."""
    attended = range(intake.workers) if intake.on_kafka_failure == "spill" else ()
    for folder in left_behind(intake.spill.folder, attended):
        logger.error(
            "spilled hits are not sent to Kafka: folder=%s advice=%s",
            *(folder, f"run `hitrouter intake --slot {folder.name}` with `on_kafka_failure: spill`"),
        )


async def _open(config: Config, store: _KafkaStore) -> None:
    """Check the topics once Kafka is available; until then hits are refused or spilled. Raises TopicMismatch."""
    while not store.checked:
        try:
            await in_daemon_thread(partial(ensure_topics, config, _CHECK_SECONDS))
            store.problem = None
        except BrokerUnavailable as error:
            store.problem = str(error)
            logger.warning("topics are not checked yet, will retry: error=%s", error)
            await asyncio.sleep(_RELOAD_SECONDS)
    if config.intake.on_kafka_failure == "reject":
        logger.info("ready: url=%s", f"http://{config.intake.listen}/track")


def listening_socket(address: str) -> socket.socket:
    """Return a socket whose port the other slots of the intake share. Raises ConfigurationError if the address is in use."""
    host, _, port = address.rpartition(":")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, SHARE_PORT, 1)
    try:
        listener.bind((host.strip("[]"), int(port)))
    except OSError as error:
        raise ConfigurationError(
            [
                f"can't listen on {address}: {error.strerror}; change `listen`, or stop the process that uses this address"
            ]
        ) from None
    listener.setblocking(False)
    return listener
