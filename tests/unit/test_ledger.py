"""Sums over ledger entries."""

from __future__ import annotations

from collections import Counter
from io import StringIO

import pytest
from rich.console import Console

from pipeline.codec.ledger_entry import Entry, LedgerEntry, decode_ledger_entry, encode_ledger_entry
from pipeline.config import Config
from pipeline.console.ledger_table import print_ledger
from pipeline.delivery.pauses import pause_entry
from pipeline.operations.ledger import ConnectionSums, Ledger, Pause, read_ledger, sum_ledger
from pipeline.telemetry.waiting import Waiting

_WAITING = Waiting(True, "the destination answers 401", 300.0, 1_795_515_330.0)


def delivered(connection: str, first: int, following: int) -> LedgerEntry:
    counts = Counter({Entry("shop", connection, "delivered"): following - first})
    return LedgerEntry("deliver", f"deliveries-{connection}", 0, first, following, 0, counts)


def routed(connections: list[str], following: int) -> LedgerEntry:
    counts = Counter({Entry("shop", "", "received"): following, Entry("shop", "", "unique"): following})
    counts |= {Entry("shop", connection, "routed"): following for connection in connections}
    return LedgerEntry("route", "hits-raw", 0, 0, following, 0, counts)


def gave_up(connection: str, first: int, following: int) -> LedgerEntry:
    counts = Counter({Entry("shop", connection, "dead", "gave_up"): following - first})
    return LedgerEntry("deliver", f"deliveries-{connection}", 0, first, following, 0, counts)


def pause(connection: str) -> LedgerEntry:
    return decode_ledger_entry(encode_ledger_entry(pause_entry(f"deliveries-{connection}", connection, _WAITING)))


def test_a_misconfigured_connection_is_shown_until_its_next_delivery_and_the_sums_stay_right() -> None:
    entries = [routed(["crm", "ads"], 3), delivered("crm", 0, 1), pause("crm"), pause("crm"), delivered("ads", 0, 3)]
    ledger = sum_ledger(entries)
    assert ledger.paused == {"crm": Pause(1_795_515_330_000, "the destination answers 401")}
    assert ledger.adds_up and ledger.connections["crm"].pending == 2
    console = Console(file=StringIO(), width=40)
    print_ledger(console, ledger)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "MISCONFIGURED: crm since 2026-11-24T10:15:30+00:00: the destination answers 401; its hits wait" in shown
    after = sum_ledger([*entries, delivered("crm", 1, 3)])
    assert after.paused == {} and after.adds_up and after.connections["crm"].pending == 0


def test_a_hit_that_was_given_up_does_not_make_its_connection_well() -> None:
    ledger = sum_ledger([routed(["crm"], 3), pause("crm"), gave_up("crm", 0, 1)])
    assert "crm" in ledger.paused and ledger.connections["crm"].pending == 2


def test_no_column_of_the_ledger_is_cut_short_on_a_terminal_of_80() -> None:
    ledger = Ledger()
    name = "a-connection-with-a-name-that-is-rather-long"
    ledger.connections[name] = ConnectionSums(20_000, 10_000, 5, 40, 19_000, 30, 50)
    console = Console(file=StringIO(), width=80)
    print_ledger(console, ledger)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for column in ("unique", "filtered", "refused", "routed", "replayed", "delivered", "skipped", "dead", "pending"):
        assert f" {column}" in shown
    assert "…" not in shown


def test_hits_that_wait_for_a_connection_which_left_the_file_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [encode_ledger_entry(entry) for entry in (routed(["crm", "old"], 3), delivered("old", 0, 1))]
    monkeypatch.setattr("pipeline.operations.ledger.read_topic", lambda *_: [Record(value) for value in entries])
    config = Config.model_validate({"connections": {"crm": {"destination": "Kafka"}}})
    ledger = read_ledger(config)
    console = Console(file=StringIO(), width=40)  # a script that looks for a message finds it
    print_ledger(console, ledger)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert ledger.adds_up and ledger.gone == ["old"]
    assert "NOT IN THE FILE: old: nobody delivers its pending 2" in shown


class Record:
    def __init__(self, value: bytes) -> None:
        self._value = value

    def value(self) -> bytes:
        return self._value
