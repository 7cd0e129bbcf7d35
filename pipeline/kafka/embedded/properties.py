"""The settings of an embedded node: one machine, quick to come back after kill -9, nothing created unasked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Node:
    """One broker that is a controller too. Addresses are `host:port`."""

    number: int
    listen: str
    controller: str
    data: Path


def server_properties(node: Node, nodes: list[Node]) -> str:
    """The text of server.properties."""
    factor = min(3, len(nodes))
    settings = {
        "process.roles": "broker,controller",
        "node.id": node.number,
        "controller.quorum.voters": ",".join(f"{other.number}@{other.controller}" for other in nodes),
        "listeners": f"PLAINTEXT://{node.listen},CONTROLLER://{node.controller}",
        "advertised.listeners": f"PLAINTEXT://{node.listen}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": node.data / "log",
        "auto.create.topics.enable": "false",
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": factor,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": factor,
        "transaction.state.log.min.isr": max(1, factor - 1),
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": factor,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # After kill -9 the controller waits for the session of the broker that was. Measured on two busy cores, from the kill to
        # the first answer: 6 to 8 s with 2000, 9 to 10 s with 4000, 10 to 11 s with 6000, 13 to 15 s with Kafka's own 9000; 5 s are
        # the boot. Below 4000 a broker that is alone fences itself when the machine stalls, and all coordinators load anew.
        "broker.session.timeout.ms": 6000,
        "broker.heartbeat.interval.ms": 500,
        # How soon the broker ends the transaction of a worker that never came back.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
        # A group without members keeps its offsets for a year; Kafka's default is seven days.
        "offsets.retention.minutes": 525_600,
        "log.retention.check.interval.ms": 60_000,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "num.recovery.threads.per.data.dir": 2,
        "log.cleaner.dedupe.buffer.size": 16_777_216,
        "controlled.shutdown.enable": "true",
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())
