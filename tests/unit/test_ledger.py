"""Sums of ledger entries, and the table that shows them."""

from __future__ import annotations

from collections import Counter
from io import StringIO
from typing import Literal

import pytest
from rich.console import Console

from pipeline.codec.ledger_entry import (
    RESUMED,
    Entry,
    LedgerEntry,
    decode_ledger_entry,
    encode_ledger_entry,
    expired_entry,
)
from pipeline.console.ledger_table import print_ledger
from pipeline.delivery.pauses import pause_entry
from pipeline.operations.ledger import Backlog, ConnectionSums, Ledger, Pause, sum_ledger
from pipeline.operations.ledger_sums import SetAsideHits
from pipeline.telemetry.waiting import Waiting

_WAITING = Waiting(True, "the destination answers 401", 300.0, 1_795_515_330.0)


def delivered(connection: str, first: int, following: int) -> LedgerEntry:
    counts = Counter({Entry("shop", connection, "delivered"): following - first})
    return LedgerEntry("deliver", f"deliveries-{connection}", 0, first, following, 0, counts)


def routed(connections: list[str], following: int) -> LedgerEntry:
    counts = Counter({Entry("shop", "", "received"): following, Entry("shop", "", "unique"): following})
    counts |= {Entry("shop", connection, "routed"): following for connection in connections}
    return LedgerEntry("route", "hits-raw", 0, 0, following, 0, counts)


def gave_up(connection: str, first: int, following: int, reason: str = "gave_up") -> LedgerEntry:
    counts = Counter({Entry("shop", connection, "dead", reason): following - first})
    return LedgerEntry("deliver", f"deliveries-{connection}", 0, first, following, 0, counts)


def pause(connection: str) -> LedgerEntry:
    return decode_ledger_entry(encode_ledger_entry(pause_entry(f"deliveries-{connection}", connection, _WAITING)))


def test_misconfigured_connection_is_shown_until_its_next_delivery() -> None:
    entries = [routed(["crm", "ads"], 3), delivered("crm", 0, 1), pause("crm"), pause("crm"), delivered("ads", 0, 3)]
    ledger = sum_ledger(entries)
    assert ledger.paused == {"crm": Pause(1_795_515_330_000, "the destination answers 401")}
    assert ledger.adds_up and ledger.connections["crm"].pending == 2
    console = Console(file=StringIO(), width=40)
    print_ledger(console, ledger)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "MISCONFIGURED: crm since 2026-11-24T10:15:30.000Z: the destination answers 401; 2 hits waiting" in shown
    after = sum_ledger([*entries, delivered("crm", 1, 3)])
    assert after.paused == {} and after.adds_up and after.connections["crm"].pending == 0


def test_paused_connection_without_hits_shows_no_hits_waiting() -> None:
    for waits in (Pause(0, "http_401"), Pause(0, "http_503", is_misconfigured=False)):
        ledger = Ledger(pauses={"crm": waits})
        (line,) = [line for line in printed(ledger).splitlines() if ": crm since" in line]
        assert line.endswith(f"{waits.message}; no hits waiting")


@pytest.mark.parametrize("reason", ["gave_up", "misconfigured_alone"])
def test_hit_that_was_given_up_does_not_end_a_pause(reason: str) -> None:
    ledger = sum_ledger([routed(["crm"], 3), pause("crm"), gave_up("crm", 0, 1, reason)])
    assert "crm" in ledger.paused and ledger.connections["crm"].pending == 2


def test_table_fits_a_terminal_of_80_columns() -> None:
    ledger = Ledger()
    name = "a-connection-with-a-name-that-is-rather-long"
    ledger.connections[name] = ConnectionSums(20_000, 10_000, 5, 40, 19_000, 30, 50)
    console = Console(file=StringIO(), width=80)
    print_ledger(console, ledger)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for column in ("unique", "filtered", "refused", "routed", "replayed", "delivered", "skipped", "dead", "pending"):
        assert f" {column}" in shown
    assert "…" not in shown


def test_table_escapes_control_characters_and_line_breaks() -> None:
    hostile = "\x1b[2J\x9b\x7f\u202e\nforged"
    ledger = Ledger()
    ledger.connections["crm"] = ConnectionSums()
    ledger.pauses = {"crm": Pause(0, hostile)}
    ledger.reasons[("crm", "dead", hostile)] = 1
    ledger.notes[("plan_violation", hostile)] = 1
    ledger.unknown_names[hostile] = 1
    ledger.problems = [hostile]
    shown = printed(ledger, width=200)
    assert all(line.isprintable() for line in shown.split("\n")) and "\nforged" not in shown
    assert shown.count("\\x1b[2J\\x9b\\x7f\\u202e\\nforged") >= 5


def test_undelivered_hits_of_a_removed_connection_are_shown() -> None:
    ledger = sum_ledger([routed(["crm", "old"], 3), delivered("old", 0, 1)])
    ledger.removed = ["old"]
    shown = printed(ledger, width=40)  # long lines must not be wrapped
    assert ledger.adds_up
    assert "REMOVED: old: 2 hits undelivered; add it back to the file" in shown


def expired(connection: str, first: int, following: int) -> LedgerEntry:
    topic = f"deliveries-{connection}" if connection else "hits-raw"
    role: Literal["route", "deliver"] = "deliver" if connection else "route"
    return decode_ledger_entry(
        encode_ledger_entry(expired_entry(role, topic, 0, first, following, 1_795_515_330_000, connection))
    )


def test_gap_counts_offsets_but_no_outcomes_and_does_not_end_a_pause() -> None:
    ledger = sum_ledger(
        [routed(["crm"], 5), delivered("crm", 0, 1), pause("crm"), expired("crm", 1, 4), expired("", 5, 7)]
    )
    sums = ledger.connections["crm"]
    assert (sums.gap_offsets, sums.outstanding, ledger.hits.expired_at_most) == (3, 4, 2)
    assert "crm" in ledger.paused and not ledger.problems
    assert ledger.counted_to == {"": {("hits-raw", 0): 7}, "crm": {("deliveries-crm", 0): 4}}


def test_gap_from_the_start_excludes_delivered_offsets() -> None:
    """Kafka deletes the offsets of a group without members after some days; its worker then starts at 0 again."""
    ledger = sum_ledger([routed(["crm"], 5), delivered("crm", 0, 3), expired("crm", 0, 4)])
    assert ledger.connections["crm"].gap_offsets == 1 and not ledger.problems


def test_incomplete_ledger_may_have_more_outcomes_than_routed_hits() -> None:
    entries = [delivered("crm", 0, 5), LedgerEntry("route", "hits-raw", 0, 5, 8, 7, Counter()), delivered("crm", 6, 8)]
    assert sum_ledger(entries).problems == ["crm: 7 more outcomes than routed hits"]
    ledger = sum_ledger(entries, is_complete=False)
    assert not ledger.problems and ledger.begins_ms == 0
    twice = [delivered("crm", 0, 5), delivered("crm", 4, 6)]
    assert sum_ledger(twice, is_complete=False).problems == ["deliver: deliveries-crm-0 4-4 is counted twice"]


def test_backlogs_show_age_and_time_to_expiry() -> None:
    ledger = sum_ledger([routed(["crm", "ads"], 3)])
    day = 86_400_000
    now = 1_000 * day
    ledger.backlogs = {
        "": Backlog(1234, 1234, 0, now - 3 * 60_000, 7 * day),
        "crm": Backlog(3, None, 0, now - 5 * day - 7_200_000, 7 * day, has_worker=False),
        "ads": Backlog(3, None, 0, now - 8 * day, 7 * day),
    }
    ledger.pauses = {"ads": Pause(now - 60_000, "http_503", is_misconfigured=False)}
    shown = printed(ledger, now_ms=now).splitlines()
    assert "not routed yet: 1,234 hits, oldest hit 3 min old, expires in 6 d 23 h" in shown
    no_worker = "; NO WORKER DELIVERS: start `hitrouter deliver`"
    assert f"crm: oldest hit 5 d 2 h old, expires in 1 d 22 h{no_worker}" in shown
    assert "ads: oldest hit 8 d old, can expire at any moment" in shown
    assert any(
        line.startswith("FAILING: ads since 1972-09-26T23:59:00.000Z: http_503; 3 hits waiting") for line in shown
    )
    assert "Everything adds up." in shown


def test_expired_hits_do_not_add_up() -> None:
    ledger = sum_ledger([routed(["crm"], 3), expired("crm", 0, 4), expired("", 3, 5)])
    sums = ledger.connections["crm"]
    sums.expired, sums.expired_at_most = 3, 3
    assert not ledger.adds_up and ledger.expired == {"": (0, 2), "crm": (3, 3)}
    shown = printed(ledger)
    assert "EXPIRED: crm: 3 hits, deleted by retention before delivery" in shown
    assert "EXPIRED: up to 2 hits of hits-raw, deleted by retention before a router read them" in shown
    assert "Everything adds up" not in shown and sums.pending == 0


def test_unknown_number_of_expired_hits_is_shown_as_a_range() -> None:
    ledger = sum_ledger([routed(["crm"], 20)])
    ledger.connections["crm"].expired_at_most = 15
    shown = printed(ledger)
    assert "EXPIRED: crm: up to 15 hits, deleted by retention before delivery" in shown
    assert " expired" in shown and " 0-15" in shown and ledger.connections["crm"].pending == 20


def test_only_a_running_worker_can_still_deliver_expired_hits() -> None:
    ledger = sum_ledger([routed(["crm"], 3)])
    ledger.connections["crm"].expired = ledger.connections["crm"].expired_at_most = 3
    held = "; a worker that holds some of them in memory can still deliver those"
    ledger.backlogs = {"crm": Backlog(0, 0, 3, has_worker=True)}
    assert f"3 hits, deleted by retention before delivery{held}" in printed(ledger)
    ledger.backlogs = {"crm": Backlog(0, 0, 3, has_worker=False)}
    assert held not in printed(ledger)


def test_resumed_connection_is_not_paused() -> None:
    resumed = LedgerEntry("pause", "deliveries-crm", 0, 0, 0, 0, Counter({Entry("", "crm", RESUMED): 1}))
    assert sum_ledger([routed(["crm"], 3), pause("crm"), resumed]).pauses == {}


def printed(ledger: Ledger, width: int = 200, now_ms: float = 0) -> str:
    console = Console(file=StringIO(), width=width)
    print_ledger(console, ledger, now_ms)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_expired_hits_of_a_removed_connection_are_shown_but_add_up() -> None:
    ledger = sum_ledger([routed(["old"], 3), delivered("old", 0, 1), expired("old", 1, 3)])
    sums = ledger.connections["old"]
    sums.expired = sums.expired_at_most = 2
    ledger.removed = ["old"]
    assert ledger.adds_up
    assert "REMOVED: old: 2 hits without an outcome, no longer on its topic" in printed(ledger)


def aside(outcomes: dict[str, int], first: int, following: int) -> LedgerEntry:
    """Return an entry about records of the topic `set-aside`."""
    counts = Counter({Entry("shop", "crm", outcome): count for outcome, count in outcomes.items()})
    return LedgerEntry("set_aside", "set-aside", 0, first, following, 0, counts)


def test_set_aside_hit_is_pending_until_its_outcome_and_counts_once() -> None:
    first = delivered("crm", 0, 3)
    first.counts[Entry("shop", "crm", "set_aside", "http_403")] = 2
    entries = [routed(["crm"], 5), first, aside({}, 0, 2)]
    ledger = sum_ledger(entries)
    sums = ledger.connections["crm"]
    assert (sums.set_aside, sums.pending, sums.outstanding) == (2, 2, 2) and ledger.adds_up
    ledger.set_aside = {"crm": SetAsideHits(2, "the destination answers 403: \x1bno", 240_000)}
    shown = printed(ledger)
    assert "crm: 2 hits set aside: the destination answers 403: \\x1bno; next retry in 4 min" in shown
    assert "Everything adds up." in shown
    ledger = sum_ledger([*entries, aside({"delivered": 1, "dead": 1, "set_aside_ended": 2}, 2, 4)])
    sums = ledger.connections["crm"]
    assert (sums.set_aside, sums.pending, sums.delivered, sums.dead) == (0, 0, 4, 1) and ledger.adds_up
    twice = sum_ledger([*entries, aside({}, 1, 3)])
    assert twice.problems == ["set_aside: set-aside-0 1-1 is counted twice"]


def test_set_aside_hit_ends_a_pause_only_when_delivered() -> None:
    put_aside = LedgerEntry(
        "deliver", "deliveries-crm", 0, 0, 1, 0, Counter({Entry("shop", "crm", "set_aside", "x"): 1})
    )
    entries = [routed(["crm"], 3), pause("crm"), put_aside, aside({}, 0, 1)]
    assert "crm" in sum_ledger(entries).paused
    assert "crm" in sum_ledger([*entries, aside({"dead": 1, "set_aside_ended": 1}, 1, 2)]).paused
    assert sum_ledger([*entries, aside({"delivered": 1, "set_aside_ended": 1}, 1, 2)]).paused == {}


def test_expired_set_aside_hits_do_not_add_up() -> None:
    gap = decode_ledger_entry(encode_ledger_entry(expired_entry("set_aside", "set-aside", 0, 0, 3, 0, "")))
    ledger = sum_ledger([routed(["crm"], 3), gap])
    assert ledger.set_aside_expired_at_most == 3 and ledger.hits.expired_at_most == 0 and not ledger.adds_up
    assert "EXPIRED: up to 3 hits that were set aside, deleted by retention before they were retried" in printed(ledger)
