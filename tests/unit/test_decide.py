"""Routing by the `integrations` dictionary (contract.md, section 3)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.hit import decode_hit
from pipeline.codec.integrations import parse_integrations
from pipeline.errors import InvalidHit
from pipeline.stages.decide import Candidate, FilterReason, RoutingPlan

_GOLDEN = yaml.safe_load((Path(__file__).parent.parent / "golden" / "integrations.yaml").read_text())
_PLAN = RoutingPlan([Candidate(name, destination) for name, destination in _GOLDEN["connections"].items()])


def routed(plan: RoutingPlan, integrations: Any) -> dict[str, Any]:
    hit = {"event": {"user": {"userId": "u"}}, "integrations": integrations}
    decoded = decode_hit(json.dumps(hit).encode())
    return {
        decision.connection: json.loads(decision.options or b"{}")
        for decision in plan.decide(decoded.integrations_raw, decoded.integrations)
        if decision.reason is None
    }


@pytest.mark.parametrize("case", _GOLDEN["cases"], ids=lambda case: case["name"].replace(" ", "_"))
def test_golden_case(case: dict[str, Any]) -> None:
    if case["expect"] == "invalid":
        with pytest.raises(InvalidHit):
            routed(_PLAN, case["integrations"])
    else:
        assert routed(_PLAN, case.get("integrations")) == case["expect"]


def reference(integrations: dict[str, Any] | None, connection: str, names: list[str]) -> Any:
    """None: not routed; else the options."""
    for name in [connection, *names]:
        entry = (integrations or {}).get(name)
        if entry is not None:
            return None if entry is False else {} if entry is True else entry
    return None if (integrations or {}).get("All") is False else {}


_entry = st.none() | st.booleans() | st.dictionaries(st.sampled_from("xy"), st.integers(), max_size=2)


@given(
    st.none()
    | st.fixed_dictionaries(
        {}, optional={"All": st.none() | st.booleans(), "one": _entry, "Kind": _entry, "Other": _entry, "zzz": _entry}
    )
)
def test_decisions_equal_an_independent_reference(integrations: dict[str, Any] | None) -> None:
    plan = RoutingPlan([Candidate("one", "Kind", ("Other",)), Candidate("two", "Kind")])
    expected = {
        "one": reference(integrations, "one", ["Kind", "Other"]),
        "two": reference(integrations, "two", ["Kind"]),
    }
    assert routed(plan, integrations) == {name: options for name, options in expected.items() if options is not None}


def test_every_filtered_connection_has_its_reason() -> None:
    plan = RoutingPlan([Candidate("one", "Kind"), Candidate("two", "Other"), Candidate("three", "Kind", (), False)])
    raw = b'{"All": false, "one": false}'
    reasons = {d.connection: d.reason for d in plan.decide(raw, parse_integrations(raw))}
    assert reasons == {
        "one": FilterReason.DISABLED_BY_SENDER,
        "two": FilterReason.DISABLED_BY_ALL,
        "three": FilterReason.OTHER_PROJECT,
    }


def test_names_that_nobody_answers_to_are_told() -> None:
    integrations = parse_integrations(b'{"All": true, "Kind": true, "Gogle": true}')
    assert RoutingPlan([Candidate("one", "Kind")]).unknown_names(integrations) == ["Gogle"]
