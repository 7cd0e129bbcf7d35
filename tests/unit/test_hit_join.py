"""Joining hits with the router's records, read in any order."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from pipeline.operations.hit_join import MAX_WAIT_SECONDS, MAX_WAITING, HitJoin

EXPECTED = frozenset({"crm", "archive"})


def fates(join: HitJoin, now: float = 0.0) -> list[str]:
    return [result.text for result in join.take_results(now)]


STEPS: list[Callable[[HitJoin], None]] = [
    lambda join: join.add_hit((0, 7), "at", "shop", "E", "h", EXPECTED, 0.0),
    lambda join: join.add_delivery("crm", "shop", "h"),
    lambda join: join.add_delivery("archive", "shop", "h"),
    lambda join: join.set_routed(0, 8),
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_result_lists_all_connections_in_any_order_of_reads(order: tuple[int, ...]) -> None:
    join = HitJoin()
    told = []
    for step in order:
        STEPS[step](join)
        told += fates(join)
    assert [*told, *fates(join, 10.0)] == ["to archive, crm"]
    assert fates(join, 100.0) == []


def test_routed_hit_without_deliveries_is_a_duplicate_or_has_no_connection() -> None:
    join = HitJoin()
    join.add_hit((0, 1), "at", "shop", "E", "h", EXPECTED, 0.0)
    join.add_hit((0, 2), "at", "shop", "E", "i", frozenset(), 0.0)
    join.set_routed(0, 3)
    assert fates(join) == []
    assert fates(join, 5.0) == ["a duplicate, not routed again", "to no connection"]


def test_result_contains_deliveries_and_dead_letters() -> None:
    join = HitJoin()
    join.add_dead_letter((0, 1), "", "invalid_json: no JSON")
    join.add_hit((0, 1), "at", "shop", "", "", frozenset(), 0.0)
    join.add_hit((0, 2), "at", "shop", "E", "h", EXPECTED, 0.0)
    join.add_delivery("crm", "shop", "h")
    join.add_dead_letter((0, 2), "archive", "invalid_options: no such option")
    join.set_routed(0, 3)
    fates(join)
    assert fates(join, 5.0) == [
        "a dead letter: invalid_json: no JSON",
        "to crm and a dead letter of archive: invalid_options: no such option",
    ]


def test_hit_without_router_is_reported_after_the_maximum_wait() -> None:
    join = HitJoin()
    join.add_hit((0, 1), "at", "shop", "E", "h", EXPECTED, 0.0)
    join.set_routed(1, 100)
    assert fates(join, MAX_WAIT_SECONDS - 1) == []
    assert "check that the router is running" in fates(join, MAX_WAIT_SECONDS)[0]


def test_hits_with_one_id_from_two_doors_have_separate_results() -> None:
    join = HitJoin()
    join.add_delivery("crm", "shop", "h", True)
    join.add_hit((0, 1), "at", "shop", "public", "h", frozenset({"crm"}), 0.0, True)
    join.add_hit((0, 2), "at", "shop", "secret", "h", EXPECTED, 0.0)
    assert [(result.event, result.text) for result in join.take_results(0.0)] == [("public", "to crm")]
    join.add_delivery("crm", "shop", "h")
    join.add_delivery("archive", "shop", "h")
    assert [(result.event, result.text) for result in join.take_results(0.0)] == [("secret", "to archive, crm")]


def test_memory_is_bounded() -> None:
    join = HitJoin()
    for number in range(3 * MAX_WAITING):
        join.add_hit((0, number), "at", "shop", "E", str(number), EXPECTED, 0.0)
        join.add_delivery("crm", "shop", f"other-{number}")
        join.add_delivery("crm", "shop", "other")
        join.add_dead_letter((1, number), "", "why")
    assert join.omitted == 2 * MAX_WAITING
    assert len(join._waiting) == len(join._early) == len(join._early_dead) == MAX_WAITING
    assert sum(map(len, join._early.values())) == MAX_WAITING
