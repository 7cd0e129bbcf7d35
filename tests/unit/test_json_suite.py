"""Every document of nst/JSONTestSuite (MIT, tests/golden/JSONTestSuite) as the payload of a hit: its verdict is ours."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.codec.hit import decode_hit
from pipeline.codec.unique_keys import unique_keys
from pipeline.errors import InvalidHit

SUITE = Path(__file__).parent.parent / "golden" / "JSONTestSuite" / "cases.jsonl"
CASES = [json.loads(line) for line in SUITE.read_text().splitlines()]


def document(case: dict[str, Any]) -> bytes:
    if "repeat" in case:
        whole: str = case["repeat"] * case["times"] + case["then"]
        return whole.encode()
    return base64.b64decode(case["base64"])


def hit(payload: bytes) -> bytes:
    return b'{"hitId":"1","event":{"user":{"userId":"u"},"payload":' + payload + b"}}"


def test_the_suite_is_whole() -> None:
    first = [case["name"][0] for case in CASES]
    assert (first.count("y"), first.count("n")) == (95, 188)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_verdict(case: dict[str, Any]) -> None:
    body = hit(document(case))
    if case["name"].startswith("y"):
        assert unique_keys(document(case)) in decode_hit(body).event
    else:
        with pytest.raises(InvalidHit) as found:
            decode_hit(body)
        assert found.value.reason in ("invalid_json", "too_large")
