"""Fixtures of the whole suite: one real Kafka per session, a topic prefix and a configuration of its own per test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded import broker as broker_module
from pipeline.kafka.embedded.broker import free_port
from tests.clickhouse import running_clickhouse
from tests.postgres import running_postgres
from tests.roles import free_admin_listen

_numbers = itertools.count(1)

# No test may depend on how quick the machine is.
settings.register_profile("hitrouter", deadline=None)
settings.load_profile("hitrouter")


def pytest_configure(config: pytest.Config) -> None:
    """Each process of the suite takes its ports from a share of its own: one that is free now may be another's in a moment."""
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        number, count, ports = int(worker["workerid"].removeprefix("gw")), worker["workercount"], broker_module._PORTS
        size = len(ports) // count
        broker_module._PORTS = ports[number * size : (number + 1) * size]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_clickhouse(tmp_path_factory.mktemp("clickhouse")) as url:
        yield url


@pytest.fixture
def make_config(kafka: EmbeddedBroker) -> Callable[..., Config]:
    """`make_config(connections=..., **sections)`: topics under a prefix that no other test has."""

    def make(connections: dict[str, Any] | None = None, **sections: Any) -> Config:
        return Config.model_validate(
            {
                "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": f"t{next(_numbers)}-"},
                "intake": {"listen": f"127.0.0.1:{free_port()}"},
                "admin": {"listen": free_admin_listen()},
                "projects": {"shop": {"tokens": ["shop-token"]}, "blog": {"tokens": ["blog-token"]}},
                "connections": connections
                or {"a": {"destination": "Kafka"}, "b": {"destination": "Kafka", "projects": ["shop"]}},
                **sections,
            }
        )

    return make
