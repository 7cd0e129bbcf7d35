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
from pipeline.stages.decide import (
    Candidate,
    Condition,
    EventSelection,
    FilterReason,
    OptionsFault,
    RoutingPlan,
    in_sample,
)
from pipeline.stages.decide.condition import ConditionFailed, ConditionInputs

_GOLDEN = yaml.safe_load((Path(__file__).parent.parent / "golden" / "integrations.yaml").read_text())
_PLAN = RoutingPlan([Candidate(name, destination) for name, destination in _GOLDEN["connections"].items()])


def routed(plan: RoutingPlan, integrations: Any) -> dict[str, Any]:
    hit = {"event": {"user": {"userId": "u"}}, "integrations": integrations}
    decoded = decode_hit(json.dumps(hit).encode())
    return {
        decision.connection: json.loads(decision.options or b"{}")
        for decision in plan.decide(decoded, b"{}")
        if decision.reason is None
    }


@pytest.mark.parametrize("case", _GOLDEN["cases"], ids=lambda case: case["name"].replace(" ", "_"))
def test_golden_case(case: dict[str, Any]) -> None:
    if case["expect"] == "invalid":
        with pytest.raises(InvalidHit):
            routed(_PLAN, case["integrations"])
    else:
        assert routed(_PLAN, case.get("integrations")) == case["expect"]


def reference(hit: dict[str, Any], connection: dict[str, Any]) -> Any:
    """The rules of contract.md, section 3, line by line: why the connection does not get the hit, else its options."""
    if not connection["serves"]:
        return "other_project"
    name = hit["event"].get("name", "")
    if connection["events"] is not None:
        wanted = [pattern for pattern in connection["events"] if not pattern.startswith("!")]
        unwanted = [pattern[1:] for pattern in connection["events"] if pattern.startswith("!")]
        if any(fits(pattern, name) for pattern in unwanted) or not any(fits(p, name) for p in wanted or ["*"]):
            return "event_not_selected"
    if connection["when"]:
        value = hit["event"].get("value")
        if value is None or (type(value) is int and value <= 0):
            return "when_failed" if "value" in hit["event"] and value is None else "when_false"
        if type(value) is str:
            return "when_failed"
    if connection["sample"] == 0.0:
        return "sampled_out"
    integrations = hit.get("integrations") or {}
    for key in (connection["name"], "Kind", "Other"):
        entry = integrations.get(key)
        if entry is not None:
            return "disabled_by_sender" if entry is False else {} if entry is True else entry
    return "disabled_by_all" if integrations.get("All") is False else {}


def fits(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(fits(pattern[1:], name[start:]) for start in range(len(name) + 1))
    return name[:1] == pattern[0] and fits(pattern[1:], name[1:])


_entry = st.none() | st.booleans() | st.dictionaries(st.sampled_from("xy"), st.integers(), max_size=2)
_hits = st.fixed_dictionaries(
    {
        "event": st.fixed_dictionaries(
            {"user": st.just({"userId": "u"})},
            optional={
                "name": st.text("ab*", max_size=3),
                "value": st.none() | st.integers(-2, 2) | st.just("text"),
            },
        )
    },
    optional={
        "integrations": st.none()
        | st.fixed_dictionaries(
            {}, optional={"All": st.none() | st.booleans(), "one": _entry, "Kind": _entry, "Other": _entry}
        )
    },
)
_connections = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["one", "two", "three", "four"]),
            "serves": st.sampled_from([True, True, True, False]),
            "events": st.none() | st.lists(st.text("ab*", min_size=1, max_size=3).flatmap(
                lambda pattern: st.sampled_from([pattern, f"!{pattern}"])), min_size=1, max_size=3),
            "when": st.booleans(),
            "sample": st.sampled_from([1.0, 0.0]),
        }
    ),
    max_size=4,
    unique_by=lambda connection: connection["name"],
)  # fmt: skip


@given(st.lists(_hits, min_size=1, max_size=4), _connections)
def test_decisions_equal_an_independent_reference(hits: list[dict[str, Any]], connections: Any) -> None:
    plan = RoutingPlan(
        [
            Candidate(
                c["name"],
                "Kind",
                ("Other",),
                c["serves"],
                EventSelection(c["events"]) if c["events"] is not None else None,
                Condition("event.value > 0") if c["when"] else None,
                c["sample"],
            )
            for c in connections
        ]
    )
    for hit in [*hits, *hits]:  # the second time from memory
        body = json.dumps(hit).encode()
        found = [
            d.reason.value if d.reason is not None else json.loads(d.options or b"{}")
            for d in plan.decide(decode_hit(body), body)
        ]
        assert found == [reference(hit, connection) for connection in connections]


@pytest.mark.parametrize(
    ("patterns", "selected", "left_out"),
    [
        (["Completed Transaction"], ["Completed Transaction"], ["completed transaction", "Completed", ""]),
        (["Viewed *"], ["Viewed Page", "Viewed "], ["Viewed", "xViewed Page"]),
        (["!Viewed *"], ["Signed Up", ""], ["Viewed Page"]),
        (["*", "!Heartbeat"], ["Viewed Page", "Heartbeats"], ["Heartbeat"]),
        (["!Viewed Cart", "Viewed *"], ["Viewed Page"], ["Viewed Cart"]),
        (["a.c", "[x]"], ["a.c", "[x]"], ["abc", "x"]),
        (["*"], ["", "a\nb"], []),
        (["a*b*a", "**x**"], ["aba", "abba", "ababa", "x", "axa"], ["ab", "aa", "a", "aab"]),
        (["*a*a*a*a*a*a*b"], ["aaaaaab", "xaaxaaxaaxb"], ["aaaaab", "a" * 3_000]),
    ],
)
def test_events_are_selected_by_name(patterns: list[str], selected: list[str], left_out: list[str]) -> None:
    selection = EventSelection(patterns)
    assert [name for name in selected + left_out if selection.selects(name)] == selected


HIT = b'{"hitId":"1","userId":"u","event":{"name":"A","value":5,"tags":["x"],"n":null},"context":{"bot":false}}'


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("event.value > 0", True),
        ("event.value > 4.5 && !context.bot", True),
        ("event.name == 'B'", False),
        ("event.tags.exists(tag, tag == 'x')", True),
        ("'y' in event.tags", False),
        ("event.missing > 0", False),
        ("event.tags[7] == 'x'", False),
        ("anonymousId == 'x'", False),
        ("has(event.missing) || userId.startsWith('u')", True),
        ("event.missing > 0 || event.value == 5", True),
        ("door == 'secret'", True),
        ("door != 'public' && event.value == 5", True),
    ],
)
def test_a_condition_sees_the_enriched_hit_and_a_missing_field_is_false(text: str, answer: bool) -> None:
    condition = Condition(text)
    assert condition.holds(ConditionInputs([condition]).read(HIT)) is answer
    large = HIT.replace(b'"n":null', b'"n":1e999')
    assert condition.holds(ConditionInputs([condition]).read(large)) is answer


def test_a_condition_can_select_hits_of_public_doors() -> None:
    condition = Condition("door == 'public'")
    public = HIT.replace(b"{", b'{"door":"public",', 1)
    assert [condition.holds(ConditionInputs([condition]).read(hit)) for hit in (public, HIT)] == [True, False]


@pytest.mark.parametrize(
    "text", ["event.name > 5", "event.value / 0 > 1", "event.value", "event.n.x == 1", "event.value.startsWith('5')"]
)
def test_a_condition_that_cannot_be_evaluated_fails(text: str) -> None:
    condition = Condition(text)
    with pytest.raises(ConditionFailed):
        condition.holds(ConditionInputs([condition]).read(HIT))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "7" * 309, "-" + "7" * 400, "1" + "0" * 4_299, "7" * 5_000])
@pytest.mark.parametrize("value", ["%s", "[%s]", '{"a":[%s]}'])
def test_a_number_that_no_float_holds_is_null_to_a_condition(number: str, value: str) -> None:
    """It is valid JSON (RFC 8259, section 6), so the intake accepts it."""
    event = value % number
    conditions = ["event.value > 0", "event.other == 1", "event.gone == 1", f"event.value == {value % 'null'}"]
    names = [f"c{position}" for position in range(4)]
    plan = RoutingPlan(
        [Candidate(name, "Kind", when=Condition(text)) for name, text in zip(names, conditions, strict=True)]
    )
    body = f'{{"event": {{"value": {event}, "other": 1, "user": {{"userId": "u"}}}}}}'.encode()
    assert [decision.reason for decision in plan.decide(decode_hit(body), body)] == [
        *(FilterReason.WHEN_FAILED, None, FilterReason.WHEN_FALSE),
        None,
    ]


@pytest.mark.parametrize("number", ["7" * 300, "-" + "1" + "0" * 308, "18446744073709551616", "1e-999"])
def test_a_number_that_a_float_holds_is_a_number_to_a_condition(number: str) -> None:
    condition = Condition("event.value > 5 || event.value <= 5")
    assert condition.holds(ConditionInputs([condition]).read(b'{"event":{"value":%b}}' % number.encode()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("event.value >", "does not compile: column"),
        ("evnt.value > 0", "unknown name 'evnt'; did you mean 'event'"),
        ("event.name.startWith('A')", "unknown function 'startWith'; did you mean 'startsWith'"),
        ("", "does not compile"),
    ],
)
def test_a_condition_that_does_not_compile_has_a_clear_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Condition(text)


def test_a_sample_selects_identities_and_a_smaller_one_is_part_of_a_larger() -> None:
    people = [f"person-{number}" for number in range(10_000)]
    tenth = {person for person in people if in_sample(person, 0.1)}
    fifth = {person for person in people if in_sample(person, 0.2)}
    assert tenth < fifth
    assert 900 < len(tenth) < 1100
    assert all(in_sample(person, 1.0) for person in people) and not any(in_sample(person, 0.0) for person in people)
    # Anyone can compute it (docs/reference/routing.md): this must never change.
    assert in_sample("user-42", 0.4361) and not in_sample("user-42", 0.4360)


def test_invalid_options_affect_only_their_connection() -> None:
    def check(options: bytes) -> tuple[str, str] | None:
        return ("must be text", "clientId") if b"7" in options else None

    plan = RoutingPlan([Candidate("one", "Kind", check_options=check), Candidate("two", "Other")])
    hit = decode_hit(b'{"event": {"user": {"userId": "u"}}, "integrations": {"Kind": {"clientId": 7}, "Other": {}}}')
    one, two = plan.decide(hit, b"{}")
    assert one.fault == OptionsFault("must be text", "integrations.Kind.clientId")
    assert (two.reason, two.fault) == (None, None)


def test_every_filtered_connection_has_its_reason() -> None:
    plan = RoutingPlan([Candidate("one", "Kind"), Candidate("two", "Other"), Candidate("three", "Kind", (), False)])
    hit = decode_hit(b'{"event": {"user": {"userId": "u"}}, "integrations": {"All": false, "one": false}}')
    reasons = {d.connection: d.reason for d in plan.decide(hit, b"{}")}
    assert reasons == {
        "one": FilterReason.DISABLED_BY_SENDER,
        "two": FilterReason.DISABLED_BY_ALL,
        "three": FilterReason.OTHER_PROJECT,
    }


def test_names_that_match_no_connection_are_returned() -> None:
    integrations = parse_integrations(b'{"All": true, "Kind": true, "Gogle": true}')
    assert RoutingPlan([Candidate("one", "Kind")]).unknown_names(integrations) == ["Gogle"]
