"""Computes the addresses that hitrouter listens on. Admin ports depend only on role and slot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.codec.ip_address import plain_ip
from pipeline.config.models import Config
from pipeline.errors import ConfigurationError

ROLES = ("intake", "route", "deliver")
"""In the order in which a hit passes them, which is also the order of the admin ports of a slot."""
_LAST_PORT = 65_535
_EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Listener:
    """One address, a host:port, on which `owner` listens. `setting` is the path in the file that determines it."""

    owner: str
    use: str
    address: str
    setting: tuple[str, str]

    @property
    def url(self) -> str:
        """The address as a URL; Kafka's stays host:port."""
        return self.address if self.owner == "kafka" else f"http://{self.address}"


def admin_port(first: int, role: str, slot: int) -> int:
    """Return the admin port of a worker: three ports per slot, in the order of ROLES. 0, a port that the system chooses, stays 0."""
    return first and first + len(ROLES) * slot + ROLES.index(role)


def admin_address(listen: str, role: str, slot: int) -> str:
    """Return the host:port of a worker's health and metrics; `listen` is `admin.listen`. Raises ConfigurationError."""
    host, _, first = listen.rpartition(":")
    port = admin_port(int(first), role, slot)
    if port > _LAST_PORT:
        raise ConfigurationError(
            [f"{role} slot {slot} has the admin port {port}, above {_LAST_PORT}; lower the port of `admin.listen`"]
        )
    return f"{host}:{port}"


def workers_of(config: Config) -> list[tuple[str, int]]:
    """Return the workers that `up` runs, as (role, slot)."""
    counts = {"intake": config.intake.workers}
    return [(role, slot) for role in ROLES for slot in range(counts.get(role, 1))]


def listeners_of(config: Config) -> Iterator[Listener]:
    """Yield all listeners of `up` for this file. Raises ConfigurationError if a port is too high."""
    if config.kafka.bootstrap_servers == "embedded":
        yield Listener("kafka", "Kafka", config.kafka.listen, ("kafka", "listen"))
    yield Listener("intake", "hits", config.intake.listen, ("intake", "listen"))
    for role, slot in workers_of(config):
        address = admin_address(config.admin.listen, role, slot)
        yield Listener(f"{role}-{slot}", "health and metrics", address, ("admin", "listen"))


def collide(first: str, second: str) -> bool:
    """Return whether two processes cannot listen on both addresses: the ports are equal and the hosts overlap."""
    (host, _, port), (other, _, other_port) = first.rpartition(":"), second.rpartition(":")
    if port != other_port or port == "0":
        return False
    hosts = {"127.0.0.1" if name == "localhost" else plain_ip(name.strip("[]")) for name in (host, other)}
    return len(hosts) == 1 or not hosts.isdisjoint(_EVERYWHERE)
