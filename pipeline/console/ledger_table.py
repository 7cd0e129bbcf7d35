"""The ledger as a table."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.operations.ledger import Ledger
from pipeline.operations.unknown_names import unknown_name

_ALWAYS = ("unique", "routed", "delivered", "pending")


def print_ledger(console: Console, ledger: Ledger) -> None:
    """Hits, connections, reasons, and whether it all adds up."""
    hits = ledger.hits
    console.print(f"received {hits.received} = unique {hits.unique} + duplicates {hits.duplicates} + dead {hits.dead}")
    if hits.conflicting:
        console.print(
            f"{hits.conflicting} of the duplicates had other content than the first with their hitId (hits_conflicting)"
        )
    columns = {
        name: [getattr(sums, name) for sums in ledger.connections.values()]
        for name in ("unique", "filtered", "refused", "routed", "replayed", "delivered", "skipped", "dead", "pending")
    }
    shown = [name for name, counts in columns.items() if name in _ALWAYS or any(counts)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("connection", overflow="fold")
    for column in shown:
        table.add_column(column, justify="right", min_width=len(column))
    for name, sums in ledger.connections.items():
        table.add_row(name, *(str(getattr(sums, column)) for column in shown))
    console.print(table)
    for name, pause in sorted(ledger.paused.items()):
        since = datetime.fromtimestamp(pause.since_ms / 1000, UTC).isoformat(timespec="seconds")
        console.print(
            f"MISCONFIGURED: {name} since {since}: {pause.message}; its hits wait",
            style="bold",
            markup=False,
            soft_wrap=True,
        )
    for name in ledger.gone:
        waiting = ledger.connections[name].pending
        text = f"NOT IN THE FILE: {name}: nobody delivers its pending {waiting}; put it back, and they are delivered"
        console.print(text, style="bold", markup=False, soft_wrap=True)
    for (connection, outcome, reason), count in sorted(ledger.reasons.items()):
        shown_for = f" ({connection})" if connection else ""
        console.print(f"  {outcome:9} {count:6}  {reason}{shown_for}", markup=False, soft_wrap=True)
    for (outcome, reason), count in ledger.notes.most_common(20):
        console.print(f"  note      {count:6}  {outcome} {reason}", markup=False, soft_wrap=True)
    for name, count in ledger.unknown_names.most_common(10):
        console.print(f"  unknown   {count:6}  {unknown_name(name, ledger.connections)}", markup=False, soft_wrap=True)
    for problem in ledger.problems:
        console.print(f"WRONG: {problem}", style="bold red", markup=False, soft_wrap=True)
    if ledger.adds_up:
        console.print("Everything adds up.", style="green")
