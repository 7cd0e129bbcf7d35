"""Tests of the listeners of `up`: admin ports follow from role and slot, and never collide."""

from __future__ import annotations

import pytest

from pipeline.config.addresses import ROLES, admin_address, admin_port, collide, listeners_of
from pipeline.config.models import Config
from pipeline.errors import ConfigurationError


def test_admin_ports_follow_from_role_and_slot() -> None:
    assert [admin_address("127.0.0.1:8081", role, 0) for role in ROLES] == [
        *("127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083")
    ]
    assert [admin_port(8081, role, 1) for role in ROLES] == [8084, 8085, 8086]
    assert admin_address("[::1]:8081", "deliver", 10) == "[::1]:8113"


def test_every_worker_has_a_different_admin_port() -> None:
    ports = [admin_port(8081, role, slot) for role in ROLES for slot in range(200)]
    assert len(set(ports)) == len(ports)


def test_port_0_stays_0() -> None:
    assert admin_address("127.0.0.1:0", "route", 5) == "127.0.0.1:0"


def test_too_high_port_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="route slot 1 has the admin port 65536"):
        admin_address("127.0.0.1:65532", "route", 1)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("127.0.0.1:80", "10.0.0.1:80", False),
        ("0.0.0.0:80", "10.0.0.1:80", True),
        ("[::]:80", "127.0.0.1:80", True),
        ("localhost:80", "127.0.0.1:80", True),
        ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", True),
        ("[::ffff:127.0.0.1]:80", "localhost:80", True),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_addresses_with_the_same_port_and_overlapping_hosts_collide(first: str, second: str, expected: bool) -> None:
    assert collide(first, second) is collide(second, first) is expected


def test_all_listeners_of_up_are_listed() -> None:
    config = Config.model_validate({"intake": {"workers": 2}})
    assert [(listener.owner, listener.use, listener.url) for listener in listeners_of(config)] == [
        ("kafka", "Kafka", "127.0.0.1:9092"),
        ("intake", "hits", "http://127.0.0.1:8080"),
        ("intake-0", "health and metrics", "http://127.0.0.1:8081"),
        ("intake-1", "health and metrics", "http://127.0.0.1:8084"),
        ("route-0", "health and metrics", "http://127.0.0.1:8082"),
        ("deliver-0", "health and metrics", "http://127.0.0.1:8083"),
    ]
    elsewhere = Config.model_validate({"kafka": {"bootstrap_servers": "kafka:9092"}})
    assert [listener.owner for listener in listeners_of(elsewhere)] == ["intake", "intake-0", "route-0", "deliver-0"]
