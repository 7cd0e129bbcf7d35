"""The published OpenAPI document against the running intake, with hits that schemathesis makes up."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipeline.config.models import Config
from schemas import read_schema

schema = schemathesis.openapi.from_dict(read_schema("openapi.json"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@schema.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_documented(case: schemathesis.Case, intake_for_clients: Config) -> None:
    answer = case.call(base_url=f"http://{intake_for_clients.intake.listen}", auth=("shop-token", ""))
    case.validate_response(answer, checks=CHECKS)
