"""Open HTTP connections: limits per address and in total, and which connection is closed at a limit."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from ipaddress import ip_network
from typing import cast

import pytest

from pipeline.config import ProjectConfig
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.open_connections import Connection, OpenConnections
from pipeline.intake.protocol import IntakeProtocol
from pipeline.intake.server_state import ServerState
from pipeline.intake.tokens import Tokens
from tests.roles import hit
from tests.unit.intake_line import Kept, Line, Wire, request


class Fake:
    """A connection that is idle since `idle_since`; None: it has a request in flight."""

    busy = False

    def __init__(self, connections: OpenConnections, peer: str, idle_since: float | None = 0.0) -> None:
        self.idle_since = idle_since
        self.is_open = True
        connections.add(cast(Connection, self), peer)

    def abort(self) -> None:
        self.is_open = False


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def made(most: int = 1_000, per_address: int = 3, trusted: str = "") -> OpenConnections:
    return OpenConnections(most, per_address, lambda address: address == trusted, Clock())


def test_at_its_limit_an_address_loses_its_longest_idle_connection() -> None:
    connections = made()
    held = [Fake(connections, "203.0.113.9", since) for since in (20.0, 10.0, 30.0)]
    other = Fake(connections, "203.0.113.10", 1.0)
    new = Fake(connections, "203.0.113.9")
    assert [each.is_open for each in held] == [True, False, True]
    assert new.is_open and other.is_open and len(connections) == 4


def test_an_address_whose_connections_are_all_busy_gets_no_more() -> None:
    connections = made()
    held = [Fake(connections, "203.0.113.9", None) for _ in range(3)]
    assert not Fake(connections, "203.0.113.9").is_open
    assert all(each.is_open for each in held) and len(connections) == 3
    connections.discard(cast(Connection, held[0]))
    assert Fake(connections, "203.0.113.9").is_open


def test_a_trusted_proxy_has_no_limit_per_address() -> None:
    connections = made(trusted="10.0.0.1")
    assert all(Fake(connections, "10.0.0.1", None).is_open for _ in range(100))


def test_ipv6_addresses_of_one_network_count_together() -> None:
    connections = made()
    held = [Fake(connections, f"2001:db8:1:2::{number}", None) for number in range(3)]
    assert not Fake(connections, "2001:db8:1:2:ffff::1").is_open
    assert Fake(connections, "2001:db8:1:3::1").is_open and all(each.is_open for each in held)


def test_at_the_total_limit_the_longest_idle_connection_is_closed() -> None:
    connections = made(most=4, per_address=4)
    busy = [Fake(connections, f"203.0.113.{number}", None) for number in range(2)]
    idle = [Fake(connections, f"203.0.113.{number}", float(number)) for number in (9, 8)]
    new = [Fake(connections, f"198.51.100.{number}", None) for number in range(3)]
    assert all(each.is_open for each in busy)
    assert not any(each.is_open for each in idle)
    assert [each.is_open for each in new] == [True, True, False], "busy ones are never closed for others"
    assert len(connections) == 4


def test_a_connection_that_became_busy_since_the_last_scan_is_kept() -> None:
    connections = made(most=3)
    held = [Fake(connections, f"203.0.113.{number}", float(number)) for number in range(3)]
    assert Fake(connections, "198.51.100.1", 50.0).is_open and not held[0].is_open
    held[1].idle_since = None
    assert Fake(connections, "198.51.100.2", 50.0).is_open
    assert held[1].is_open and not held[2].is_open


def test_a_scan_without_result_is_not_repeated_at_once() -> None:
    class Counted(Fake):
        looks = 0
        since: float | None = None

        @property
        def idle_since(self) -> float | None:
            Counted.looks += 1
            return self.since

        @idle_since.setter
        def idle_since(self, since: float | None) -> None:
            self.since = since

    connections = made(most=100)
    for number in range(100):
        Counted(connections, f"203.0.113.{number}", None)
    assert not any(Fake(connections, "198.51.100.1").is_open for _ in range(50))
    assert Counted.looks == 100


def test_closed_connections_leave_no_entries() -> None:
    connections = made(most=50)
    opened = [Fake(connections, f"2001:db8:{number:x}::1", float(number)) for number in range(2_000)]
    assert sum(each.is_open for each in opened) == len(connections) == len(connections._by_address) == 50
    for each in opened:
        connections.discard(cast(Connection, each))
    assert not len(connections) and not connections._by_address and not connections._addresses


class TestIdle:
    """Idle time of one connection."""

    def test_a_connection_is_idle_only_between_requests(self) -> None:
        line = Line()
        fresh = line.connection.idle_since
        assert fresh is not None
        line.connection.data_received(request(hit("1"))[:30])
        assert line.connection.idle_since is None
        line.connection.data_received(request(hit("1"))[30:])
        assert line.connection.idle_since is None, "an answer is owed"
        line.store.reports.pop()(True)
        used = line.connection.idle_since
        assert used is not None and used > fresh, "one that was never used makes room first"

    def test_a_connection_with_unread_answers_is_not_idle(self) -> None:
        line = Line()
        line.connection.pause_writing()
        assert line.connection.idle_since is None


def test_the_limit_per_address_is_configurable(monkeypatch: pytest.MonkeyPatch) -> None:
    trusted = ClientAddress([ip_network("10.0.0.0/8")])
    connections = OpenConnections(most_per_address=2, has_no_limit=trusted.trusts)
    tokens = Tokens({"shop": ProjectConfig(tokens=["old"])})
    state = ServerState(Endpoints(tokens), Kept(), b"{}", trusted, lambda address: address, connections)
    wires = {peer: [Wire(peer) for _ in range(4)] for peer in ("203.0.113.9", "::ffff:203.0.113.9", "10.1.2.3")}
    for wire in [wire for each in wires.values() for wire in each]:
        IntakeProtocol(state).connection_made(wire)
    assert {peer: sum(not wire.aborted for wire in each) for peer, each in wires.items()} == {
        "203.0.113.9": 0,
        "::ffff:203.0.113.9": 2,
        "10.1.2.3": 4,
    }


def test_idle_connections_at_the_limit_do_not_block_new_clients() -> None:
    """With real sockets and smaller limits."""

    async def attacked() -> None:
        connections = OpenConnections(most=30, most_per_address=20)
        store = Kept()
        tokens = Tokens({"shop": ProjectConfig(tokens=["old"])})
        state = ServerState(Endpoints(tokens), store, b"{}", ClientAddress([]), lambda address: address, connections)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: IntakeProtocol(state), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        streams = []

        async def opened(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            streams.append(await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))
            return streams[-1]

        async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(request(hit("1")))
            while not store.reports:
                await asyncio.sleep(0.001)
            store.reports.pop()(True)
            return await reader.readuntil(b"\r\n\r\n")

        async with asyncio.timeout(10):
            kept = await opened("127.0.0.2")
            assert (await answered(*kept)).startswith(b"HTTP/1.1 204")
            for _ in range(60):
                await opened("127.0.0.3")
            assert (await answered(*kept)).startswith(b"HTTP/1.1 204"), "it had its connection before"
            for number in range(60):
                await opened(f"127.0.1.{number}")
            assert (await answered(*await opened("127.0.0.4"))).startswith(b"HTTP/1.1 204")
            assert (await answered(*await opened("127.0.0.3"))).startswith(b"HTTP/1.1 204")
            assert len(connections) <= 30
        for _, writer in streams:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        server.close()

    if not _has_loopback_network():
        pytest.skip("only Linux gives a machine all of 127.0.0.0/8")
    asyncio.run(attacked())


def _has_loopback_network() -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.2", 0))
        return True
    return False
