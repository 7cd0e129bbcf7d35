"""Tests of the checker: it detects every violation of the delivery guarantee."""

from __future__ import annotations

import json

import pytest

from tests.faults.checker import Found, Sent, check


def value(marker: str, **more: object) -> bytes:
    return json.dumps({"hitId": f"h-{marker}", "event": {"marker": marker}, **more}).encode()


def routed(marker: str, project: str = "shop") -> bytes:
    return json.dumps({"hitId": f"h-{marker}", "projectId": project, "event": {"marker": marker}}).encode()


def sent(marker: str, *connections: str, stored: bool = True) -> Sent:
    return Sent(marker, value(marker), "shop", frozenset(connections), stored)


def found(a: list[bytes], dead: list[bytes] | None = None, ledger: int | None = None) -> Found:
    letters = dead or []
    return Found({"a": a}, letters, {"a": len(a) if ledger is None else ledger}, len(letters))


def test_correct_run_has_an_empty_verdict() -> None:
    assert check([sent("1", "a"), sent("2")], found([routed("1")])).kinds == []


def test_hit_without_an_answer_can_be_missing() -> None:
    assert check([sent("1", "a", stored=False)], found([])).kinds == []


@pytest.mark.parametrize(
    ("hits", "topics", "kind"),
    [
        ([sent("1", "a")], found([]), "lost"),
        ([sent("1", "a")], found([routed("1"), routed("1")]), "doubled"),
        ([], found([routed("1")]), "ghost"),
        ([sent("1", "a")], found([routed("1").replace(b"h-1", b"h-9")]), "corrupt"),
        ([sent("1", "a")], found([routed("1"), b"\x00"]), "corrupt"),
        ([sent("1", "a")], found([routed("1", "blog")]), "corrupt"),
        ([sent("1")], found([routed("1")]), "misrouted"),
        ([sent("1", "a")], found([routed("1")], [value("1")]), "misrouted"),
        ([sent("1", "a")], found([routed("1")], ledger=2), "unaccounted"),
        ([Sent("1", b"{", "shop", frozenset(), True, True)], found([]), "lost"),
        ([Sent("1", b"{", "shop", frozenset(), True, True)], found([], [b"{", b"{"]), "doubled"),
    ],
)
def test_each_violation_is_detected(hits: list[Sent], topics: Found, kind: str) -> None:
    assert kind in check(hits, topics).kinds
