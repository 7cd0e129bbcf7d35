"""The settings of an embedded node: for one machine, with a quick recovery after a kill and no automatic topic creation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Node:
    """One broker that is also a controller. Addresses are `host:port`."""

    number: int
    listen: str
    controller: str
    data: Path


def server_properties(node: Node, nodes: list[Node]) -> str:
    """Return the text of server.properties in ASCII. Paths are relative to `node.data`, the node's working directory."""
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
        "log.dirs": "log",  # relative, because Kafka splits this at commas, which cannot be escaped
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
        # After a kill, the controller waits until the session of the killed broker expires. Time from the kill to the first
        # response, on two busy cores: 6 to 8 s with 2000, 9 to 10 s with 4000, 10 to 11 s with 6000, 13 to 15 s with the default
        # 9000; 5 s of it are the start. Below 4000 a single broker fences itself if the machine stalls; then all coordinators reload.
        "broker.session.timeout.ms": 6000,
        "broker.heartbeat.interval.ms": 500,
        # Interval at which the broker aborts expired transactions of dead workers.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
        # Keep the offsets of a group without members for a year; the default is seven days.
        "offsets.retention.minutes": 525_600,
        "log.retention.check.interval.ms": 60_000,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "num.recovery.threads.per.data.dir": 2,
        "log.cleaner.dedupe.buffer.size": 16_777_216,
        "controlled.shutdown.enable": "true",
    }
    return "".join(f"{name}={_escaped(str(value))}\n" for name, value in settings.items())


def _escaped(value: str) -> str:
    r"""Escape `value` for java.util.Properties: backslashes and all but visible ASCII become \uXXXX (UTF-16)."""
    return re.sub(r"[^!-\[\]-~]", lambda found: _code_units(found[0]), value)


def _code_units(character: str) -> str:
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))
