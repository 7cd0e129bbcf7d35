"""Where a hit went, from records that are read in any order."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from pipeline.operations.hit_join import LONGEST_WAIT_SECONDS, MOST_WAITING, Join

WANTED = frozenset({"crm", "archive"})


def fates(join: Join, now: float = 0.0) -> list[str]:
    return [told.fate for told in join.told(now)]


STEPS: list[Callable[[Join], None]] = [
    lambda join: join.hit((0, 7), "at", "shop", "E", "h", WANTED, 0.0),
    lambda join: join.delivered("crm", "shop", "h"),
    lambda join: join.delivered("archive", "shop", "h"),
    lambda join: join.routed(0, 8),
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_hit_is_told_with_all_its_connections_whatever_is_read_first(order: tuple[int, ...]) -> None:
    join = Join()
    told = []
    for step in order:
        STEPS[step](join)
        told += fates(join)
    assert [*told, *fates(join, 10.0)] == ["to archive, crm"]
    assert fates(join, 100.0) == []


def test_a_hit_that_the_router_has_passed_without_a_record_is_a_duplicate_or_wanted_by_nobody() -> None:
    join = Join()
    join.hit((0, 1), "at", "shop", "E", "h", WANTED, 0.0)
    join.hit((0, 2), "at", "shop", "E", "i", frozenset(), 0.0)
    join.routed(0, 3)
    assert fates(join) == []
    assert fates(join, 5.0) == ["a duplicate, not routed again", "to no connection"]


def test_a_dead_letter_is_told_beside_what_others_got() -> None:
    join = Join()
    join.dead((0, 1), "", "invalid_json: no JSON")
    join.hit((0, 1), "at", "shop", "", "", frozenset(), 0.0)
    join.hit((0, 2), "at", "shop", "E", "h", WANTED, 0.0)
    join.delivered("crm", "shop", "h")
    join.dead((0, 2), "archive", "invalid_options: no such option")
    join.routed(0, 3)
    fates(join)
    assert fates(join, 5.0) == [
        "a dead letter: invalid_json: no JSON",
        "to crm and a dead letter of archive: invalid_options: no such option",
    ]


def test_without_a_router_a_hit_is_told_after_a_while() -> None:
    join = Join()
    join.hit((0, 1), "at", "shop", "E", "h", WANTED, 0.0)
    join.routed(1, 100)
    assert fates(join, LONGEST_WAIT_SECONDS - 1) == []
    assert "does the router run?" in fates(join, LONGEST_WAIT_SECONDS)[0]


def test_two_hits_with_one_id_by_two_doors_are_told_apart() -> None:
    join = Join()
    join.delivered("crm", "shop", "h", True)
    join.hit((0, 1), "at", "shop", "public", "h", frozenset({"crm"}), 0.0, True)
    join.hit((0, 2), "at", "shop", "secret", "h", WANTED, 0.0)
    assert [(told.event, told.fate) for told in join.told(0.0)] == [("public", "to crm")]
    join.delivered("crm", "shop", "h")
    join.delivered("archive", "shop", "h")
    assert [(told.event, told.fate) for told in join.told(0.0)] == [("secret", "to archive, crm")]


def test_what_waits_has_a_bound() -> None:
    join = Join()
    for number in range(3 * MOST_WAITING):
        join.hit((0, number), "at", "shop", "E", str(number), WANTED, 0.0)
        join.delivered("crm", "shop", f"other-{number}")
        join.delivered("crm", "shop", "other")
        join.dead((1, number), "", "why")
    assert join.left_out == 2 * MOST_WAITING
    assert len(join._waiting) == len(join._early) == len(join._early_dead) == MOST_WAITING
    assert sum(map(len, join._early.values())) == MOST_WAITING
