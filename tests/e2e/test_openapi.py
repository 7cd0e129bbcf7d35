"""The published OpenAPI document against the running intake, with hits that schemathesis makes up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from schemas import read_schema
from tests.roles import running

schema = schemathesis.openapi.from_dict(read_schema("openapi.json"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def base_url(kafka: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = Config.model_validate(
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": "openapi-"},
            "intake": {"listen": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": f"127.0.0.1:{free_port()}"},
            "projects": {"shop": {"tokens": ["shop-token"], "data_streams": ["stream-secret"]}},
        }
    )
    with running("intake", config, tmp_path_factory.mktemp("openapi")):
        yield f"http://{config.intake.listen}"


@schema.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_documented(case: schemathesis.Case, base_url: str) -> None:
    answer = case.call(base_url=base_url, auth=("shop-token", ""))
    case.validate_response(answer, checks=CHECKS)
