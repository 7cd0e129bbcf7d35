"""Tests of the verdict of the soak."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.codec.ledger_entry import Entry, LedgerEntry
from tests.faults.soak.verdict import Books, Place, judge

TOPICS = {"everything": "deliveries-everything", "hook": "deliveries-hook"}
RAW = "hits-raw"


def entry(role: str, topic: str, first: int, end: int, **counts: int) -> LedgerEntry:
    """Return a ledger entry; `counts` has names of the form `connection__outcome`."""
    counted = Counter({Entry("shop", *name.split("__")): count for name, count in counts.items()})
    return LedgerEntry(role, topic, 0, first, end, 0, counted)  # type: ignore[arg-type]


def kept() -> Books:
    """Return the books of three hits: one delivered, one a dead letter of the webhook, one expired before its delivery."""
    books = Books({name: frozenset(TOPICS) for name in "abc"}, set("abc"))
    books.places[RAW] = {name: [Place(0, number)] for number, name in enumerate("abc")}
    for topic in TOPICS.values():
        books.places[topic] = {name: [Place(0, number)] for number, name in enumerate("abc")}
    books.letters.add(("hook", "b"))
    books.taken = {"hook": Counter("a")}
    books.entries = [
        entry("route", RAW, 0, 3, everything__routed=3, hook__routed=3),
        entry("deliver", TOPICS["hook"], 0, 2, hook__delivered=1, hook__dead=1),
        entry("deliver", TOPICS["hook"], 2, 3, hook__expired=1),
    ]
    return books


def test_delivered_dead_and_expired_hits_add_up() -> None:
    verdict = judge(kept(), RAW, TOPICS)
    assert verdict.problems == []
    assert verdict.counts == {"everything": {"delivered": 3}, "hook": {"delivered": 1, "dead": 1, "expired": 1}}


def test_hit_that_no_router_read_can_expire() -> None:
    books = kept()
    books.sent["d"] = frozenset(TOPICS)
    books.accepted.add("d")
    books.places[RAW]["d"] = [Place(0, 3)]
    assert (
        "everything: d is lost; on its topic at [], raw at [Place(partition=0, offset=3)]"
        in judge(books, RAW, TOPICS).problems
    )
    books.entries.append(entry("route", RAW, 3, 4, __expired=1))
    verdict = judge(books, RAW, TOPICS)
    assert verdict.problems == []
    assert verdict.counts["everything"]["expired"] == 1


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        (lambda books: books.entries.pop(), "hook: c is lost"),
        (lambda books: books.entries.pop(), "hook: 3 routed, but 2 delivered, dead or expired (0)"),
        (lambda books: books.places[TOPICS["hook"]]["a"].append(Place(1, 0)), "hook: a is on its topic 2 times"),
        (lambda books: books.places[TOPICS["hook"]].pop("a"), "hook: a is lost"),
        (lambda books: books.places[TOPICS["hook"]].update(x=[Place(0, 9)]), "hook: nobody sent x"),
        (lambda books: books.entries.pop(0), "everything: the ledger routed 0, the topic held 3"),
        (lambda books: books.taken["hook"].clear(), "hook: a is lost"),
    ],
)
def test_each_error_is_a_problem(what: object, problem: str) -> None:
    books = kept()
    what(books)  # type: ignore[operator]
    assert any(found.startswith(problem) for found in judge(books, RAW, TOPICS).problems)


def test_hit_set_aside_is_lost_unless_it_ended_or_expired_there() -> None:
    books = kept()
    books.entries.pop()
    books.entries.append(entry("deliver", TOPICS["hook"], 2, 3, hook__set_aside=1))
    books.aside["hook", "c"] = [Place(0, 7), Place(1, 4)]
    assert any(problem.startswith("hook: c is lost") for problem in judge(books, RAW, TOPICS).problems)
    books.entries.append(LedgerEntry("set_aside", "set-aside", 1, 4, 5, 0, Counter({Entry("", "", "expired"): 1})))
    assert judge(books, RAW, TOPICS).problems == []
    books.entries[-1] = entry("set_aside", "set-aside", 4, 5, hook__delivered=1, hook__set_aside_ended=1)
    books.taken["hook"]["c"] = 1
    verdict = judge(books, RAW, TOPICS)
    assert verdict.problems == [] and verdict.counts["hook"] == {"delivered": 2, "dead": 1}
