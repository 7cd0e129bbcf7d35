"""The addresses that hitrouter listens on; admin ports follow from role and slot alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.codec.ip_address import plain_ip
from pipeline.config.models import Config
from pipeline.errors import ConfigurationError

ROLES = ("intake", "route", "deliver")
"""In the order of the way of a hit; also that of the admin ports of a slot."""
_LAST_PORT = 65_535
_EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Listener:
    """`owner` listens on `address`, a host:port, for `use`; `setting` is the path in the file that decides it."""

    owner: str
    use: str
    address: str
    setting: tuple[str, str]


def admin_port(first: int, role: str, slot: int) -> int:
    """The admin port of a worker: three a slot, in the order of ROLES. 0 stays 0, a free port that the system chooses."""
    return first and first + len(ROLES) * slot + ROLES.index(role)


def admin_address(listen: str, role: str, slot: int) -> str:
    """Where the worker serves its health and metrics; `listen` is `admin.listen`. Raises ConfigurationError."""
    host, _, first = listen.rpartition(":")
    port = admin_port(int(first), role, slot)
    if port > _LAST_PORT:
        raise ConfigurationError(
            [f"{role} slot {slot} has the admin port {port}, above {_LAST_PORT}; lower the port of `admin.listen`"]
        )
    return f"{host}:{port}"


def workers_of(config: Config) -> list[tuple[str, int]]:
    """The workers that `up` runs: (role, slot)."""
    counts = {"intake": config.intake.workers}
    return [(role, slot) for role in ROLES for slot in range(counts.get(role, 1))]


def listeners_of(config: Config) -> Iterator[Listener]:
    """Everything that listens when `up` runs this file. Raises ConfigurationError for an impossible port."""
    if config.kafka.bootstrap_servers == "embedded":
        yield Listener("kafka", "Kafka", config.kafka.listen, ("kafka", "listen"))
    yield Listener("intake", "hits", config.intake.listen, ("intake", "listen"))
    for role, slot in workers_of(config):
        address = admin_address(config.admin.listen, role, slot)
        yield Listener(f"{role}-{slot}", "health and metrics", address, ("admin", "listen"))


def collide(first: str, second: str) -> bool:
    """Whether two addresses can't both be listened on: one port, and hosts that overlap."""
    (host, _, port), (other, _, other_port) = first.rpartition(":"), second.rpartition(":")
    if port != other_port or port == "0":
        return False
    hosts = {"127.0.0.1" if name == "localhost" else plain_ip(name.strip("[]")) for name in (host, other)}
    return len(hosts) == 1 or not hosts.isdisjoint(_EVERYWHERE)


def address_table(config: Config) -> str:
    """A line for each listener of `up`: who, for what, and where."""
    listeners = list(listeners_of(config))
    width = max(len(listener.owner) for listener in listeners)
    uses = max(len(listener.use) for listener in listeners)
    lines = []
    for listener in listeners:
        prefix = "" if listener.owner == "kafka" else "http://"
        lines.append(f"  {listener.owner:<{width}}  {listener.use:<{uses}}  {prefix}{listener.address}")
    return "\n".join(lines)
