"""Provides one intake for all tests that only send to it as clients do; each test uses different hit ids."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from tests.roles import free_admin_listen, running


@pytest.fixture(scope="session")
def intake_for_clients(kafka: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    config = Config.model_validate(
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": "clients-"},
            "intake": {"listen": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": free_admin_listen()},
            "projects": {
                "shop": {"tokens": ["shop-token"], "public_keys": ["shop-key"], "data_streams": ["stream-secret"]}
            },
        }
    )
    with running("intake", config, tmp_path_factory.mktemp("clients")):
        yield config
