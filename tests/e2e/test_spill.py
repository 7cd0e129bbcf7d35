"""Tests `on_kafka_failure` when Kafka fails under traffic (contract.md, section 1; docs/how-to/ride-out-kafka-outages.md).

One short outage for all; `make prove ARGS="--outages 60"` is the long one.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.outage import Outage, run_outages

OUTAGES = [Outage("reject", False), Outage("reject", True), Outage("spill", False), Outage("spill", True)]


@pytest.fixture(scope="module")
def outages(tmp_path_factory: pytest.TempPathFactory) -> list[Outage]:
    asyncio.run(run_outages(OUTAGES, 8, 75, tmp_path_factory.mktemp("outage")))
    return OUTAGES


@pytest.mark.parametrize("number", range(4), ids=["reject", "reject, killed", "spill", "spill, killed"])
def test_no_acknowledged_hit_is_lost_and_each_answer_is_as_promised(outages: list[Outage], number: int) -> None:
    assert outages[number].problems == [], str(outages[number])
