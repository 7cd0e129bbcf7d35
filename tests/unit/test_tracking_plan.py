"""Tracking plans: validation of events by JSON Schema."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.plan_files import PlanFiles
from pipeline.stages.tracking_plan import TrackingPlan, Violation

ORDER = {
    "type": "object",
    "required": ["name", "orderId"],
    "additionalProperties": False,
    "properties": {
        "name": {},
        "user": {},
        "orderId": {"type": "string"},
        "total": {"type": "number", "minimum": 0},
        "items": {"type": "array", "items": {"type": "object", "required": ["sku"]}},
        "sizes": {"items": {"minimum": 5, "multipleOf": 2}, "allOf": [{"items": {"maximum": 50}}]},
    },
}
GOOD = {"name": "Order", "user": {"userId": "u"}, "orderId": "1"}


def violation(document: Any, event: dict[str, Any]) -> tuple[str, str] | None:
    found = TrackingPlan(document, "warn").violation(event.get("name", ""), json.dumps(event).encode())
    return (found.path, found.message) if found is not None else None


def test_a_plan_names_the_place_of_the_violation() -> None:
    assert violation(ORDER, GOOD) is None
    assert violation(ORDER, {**GOOD, "total": -1}) == ("event.total", "-1 is less than the minimum of 0")
    assert violation(ORDER, {**GOOD, "items": [{"sku": 1}, {}]}) == ("event.items.1", '"sku" is a required property')
    found = violation(ORDER, {**GOOD, "extra": 1})
    assert found is not None and found[0] == "event" and "extra" in found[1]


def seconds(plan: TrackingPlan, event: dict[str, Any]) -> float:
    """Return an upper bound of the time per hit, without outliers."""
    body = json.dumps(event).encode()

    def once() -> float:
        began = time.perf_counter()
        assert plan.violation("", body) is not None
        if plan.on_violation == "strip":
            plan.stripped("", body)
        return time.perf_counter() - began

    return min(once() for _ in range(5))


@pytest.mark.parametrize("on_violation", ["warn", "strip"])
@pytest.mark.parametrize("is_nested", [True, False])
def test_the_time_per_hit_does_not_depend_on_the_number_of_violations(on_violation: Any, is_nested: bool) -> None:
    names = {"propertyNames": {"pattern": "^[a-z]+$"}}
    plan = TrackingPlan({"properties": {"p": names}} if is_nested else names, on_violation)
    few, many = (
        {("Name" if number < wrong else "name") + "x" * number: 1 for number in range(300)} for wrong in (3, 300)
    )
    if is_nested:
        few, many = {"p": few}, {"p": many}
    assert seconds(plan, many) < 20 * seconds(plan, few)


def test_stripping_an_object_with_over_a_hundred_violations_leaves_the_identity() -> None:
    plan = TrackingPlan({"propertyNames": {"pattern": "^[a-z]+$"}}, "strip")
    user = {"userId": "u", "email": "ann@shop.example"}
    event = {"name": "E", "user": user, **{f"Key{number}": 1 for number in range(101)}}
    left, still_wrong = plan.stripped("E", json.dumps(event).encode())
    assert json.loads(left) == {"name": "E", "user": {"userId": "u"}} and still_wrong is None


def test_a_plan_may_have_one_schema_per_event_name() -> None:
    plan = {"events": {"Order": {"$ref": "#/$defs/order"}}, "$defs": {"order": ORDER}}
    assert violation(plan, {**GOOD, "total": -1}) is not None
    assert violation(plan, {"name": "Other", "total": -1}) is None
    assert violation({**plan, "events": {**plan["events"], "*": False}}, {"name": "Other"}) is not None
    assert violation({**plan, "events": {**plan["events"], "*": False}}, GOOD) is None


@pytest.mark.parametrize(
    ("more", "left", "still_wrong"),
    [
        ({"extra": 1, "other": {}}, {}, False),
        ({"total": -1}, {}, False),
        ({"items": [1, 2, {"sku": "a"}, 3]}, {"items": [{"sku": "a"}]}, False),
        ({"sizes": [8, 3, 10, 1, 99, 12]}, {"sizes": [8, 10, 12]}, False),  # 3 and 1 break it twice
        ({"orderId": 7}, {"orderId": None}, True),
        ({"user": {"userId": "u", "age": 3}}, {"user": {"userId": "u", "age": 3}}, False),
    ],
)
def test_stripping_removes_forbidden_members(more: Any, left: dict[str, Any], still_wrong: bool) -> None:
    event, remaining = TrackingPlan(ORDER, "strip").stripped("Order", json.dumps({**GOOD, **more}).encode())
    expected = {**GOOD, **left}
    assert json.loads(event) == {name: value for name, value in expected.items() if value is not None}
    assert (remaining is not None) is still_wrong


def test_items_without_a_name_are_kept() -> None:
    plan = TrackingPlan(
        {"properties": {"n": {"prefixItems": [{"type": "integer"}], "unevaluatedItems": False}}}, "strip"
    )
    event, remaining = plan.stripped("", b'{"n":["x",2,3]}')
    assert (json.loads(event), remaining is not None) == ({"n": [2, 3]}, True)


def test_stripping_never_removes_the_identity() -> None:
    plan = TrackingPlan({"additionalProperties": False, "properties": {"name": {"const": "x"}}}, "strip")
    event, remaining = plan.stripped("Order", json.dumps(GOOD).encode())
    assert json.loads(event) == {"name": "Order", "user": {"userId": "u"}}
    assert remaining is not None


def test_a_number_beyond_a_float_is_a_violation_and_no_crash() -> None:
    event = b'{"name":"Order","orderId":"1","total":1e999}'
    plan = TrackingPlan(ORDER, "strip")
    assert plan.violation("Order", event) == Violation("event", "can't be checked: Number out of range - at `$[...]`")
    assert plan.stripped("Order", event) == (event, plan.violation("Order", event))


@pytest.mark.parametrize(
    "version", [None, "http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2019-09/schema"]
)
def test_a_format_is_checked_in_each_version_of_json_schema(version: str | None) -> None:
    plan = {"properties": {"email": {"format": "email"}}} | ({"$schema": version} if version else {})
    assert violation(plan, {"email": "a@shop.example"}) is None
    assert violation(plan, {"email": "not-an-email"}) == ("event.email", '"not-an-email" is not a "email"')
    event, remaining = TrackingPlan(plan, "strip").stripped("", b'{"email":"not-an-email"}')
    assert (event, remaining) == (b"{}", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"plan\.json:1: not JSON"),
        (b'\n{"type": "x", }', r"plan\.json:2: not JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"type": "strin"}', "no JSON Schema"),
        (b"7", "no JSON Schema"),
        (b'{"events": 7}', "one per event name"),
        (b'{"events": {"Order": {"minimum": "x"}}}', "schema of 'Order'"),
        (b'{"properties": {"a": {"format": "emial"}}}', "at properties.a.format: nothing checks the format 'emial'"),
        (b'{"$schema": "http://json-schema.org/draft-07/schema#", "format": "uuid"}', "the format 'uuid'"),
    ],
)
def test_a_broken_plan_is_refused_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TrackingPlan.read(PlanFiles(file), "warn")


def test_a_plan_refers_to_files_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "plan.json").write_text('{"events": {"Order": {"$ref": "more/my%20order.json#/$defs/order"}}}')
    (tmp_path / "more" / "my order.json").write_text('{"$defs": {"order": {"properties": {"n": {"$ref": "n.json"}}}}}')
    (tmp_path / "more" / "n.json").write_text(
        '{"$id": "n.json", "type": "number", "$defs": {"x": {"$ref": "../x.json"}}}'
    )
    files = PlanFiles(tmp_path / "plan.json")
    assert [str(path.relative_to(tmp_path)) for path in files.paths] == [
        *("plan.json", "more/my order.json", "more/n.json", "x.json"),
    ]
    (tmp_path / "x.json").write_text("true")
    plan = TrackingPlan.read(files, "warn")
    assert plan.violation("Order", b'{"n":1}') is None
    assert plan.violation("Order", b'{"n":"1"}') == Violation("event.n", '"1" is not of type "number"')


@pytest.mark.parametrize(
    "reference",
    [
        *("../secret.json", "/secret.json", "link.json", "..%2fsecret.json", "file:SECRET", "file://other/secret.json"),
        *(
            "http://127.0.0.1:9/plan.json",
            "https://plans.example/a.json",
            "data:application/json,true",
            "%00",
            "circle",
        ),
    ],
)
def test_a_plan_refers_to_nothing_outside_of_its_folder(tmp_path: Path, reference: str) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "secret.json").write_text("true")
    (tmp_path / "plans" / "link.json").symlink_to("../secret.json")
    (tmp_path / "plans" / "circle").symlink_to("circle")
    file = tmp_path / "plans" / "plan.json"
    file.write_text(json.dumps({"$ref": reference.replace("SECRET", str(tmp_path / "secret.json"))}))
    with pytest.raises(ValueError, match=r"plan\.json: the schema of '\*': \$ref \S+ points outside the plan's folder"):
        TrackingPlan.read(PlanFiles(file), "warn")
    assert PlanFiles(file).paths == [file]


def test_a_file_that_a_plan_refers_to_is_named_where_it_is_broken_or_missing(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"$ref": "order.json"}')
    with pytest.raises(ValueError, match=r"order\.json can't be read: No such file"):
        TrackingPlan.read(PlanFiles(tmp_path / "plan.json"), "warn")
    (tmp_path / "order.json").write_text("{")
    with pytest.raises(ValueError, match=r"order\.json:1: not JSON"):
        TrackingPlan.read(PlanFiles(tmp_path / "plan.json"), "warn")


def test_an_id_is_a_name_and_no_place_to_read_from(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text('{"$id": "https://plans.example/a.json", "$ref": "#/$defs/a", "$defs": {"a": {"required": ["b"]}}}')
    assert TrackingPlan.read(PlanFiles(file), "warn").violation("", b"{}") is not None
    file.write_text('{"$id": "https://plans.example/a.json", "$ref": "b.json"}')
    with pytest.raises(ValueError, match=r"https://plans\.example/b\.json points outside"):
        TrackingPlan.read(PlanFiles(file), "warn")
