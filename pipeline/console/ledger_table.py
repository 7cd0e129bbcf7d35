"""The ledger as a table."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.config.load import nearest
from pipeline.operations.ledger import Ledger
from pipeline.registry import declared_destinations

_ALWAYS = ("unique", "routed", "delivered", "pending")


def print_ledger(console: Console, ledger: Ledger) -> None:
    """Hits, connections, reasons, and whether it all adds up."""
    hits = ledger.hits
    console.print(f"received {hits.received} = unique {hits.unique} + duplicates {hits.duplicates} + dead {hits.dead}")
    columns = {
        name: [getattr(sums, name) for sums in ledger.connections.values()]
        for name in ("unique", "filtered", "refused", "routed", "replayed", "delivered", "skipped", "dead", "pending")
    }
    shown = [name for name, counts in columns.items() if name in _ALWAYS or any(counts)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("connection", overflow="fold")
    for column in shown:
        table.add_column(column, justify="right")
    for name, sums in ledger.connections.items():
        table.add_row(name, *(str(getattr(sums, column)) for column in shown))
    console.print(table)
    for (connection, outcome, reason), count in sorted(ledger.reasons.items()):
        console.print(f"  {outcome:9} {count:6}  {reason}" + (f" ({connection})" if connection else ""))
    for (outcome, reason), count in ledger.notes.most_common(20):
        console.print(f"  note      {count:6}  {outcome} {reason}", markup=False)
    for name, count in ledger.unknown_names.most_common(10):
        console.print(f"  unknown   {count:6}  {_unknown(name, ledger)}", markup=False)
    for problem in ledger.problems:
        console.print(f"WRONG: {problem}", style="bold red", markup=False)
    if ledger.adds_up:
        console.print("Everything adds up.", style="green")


def _unknown(name: str, ledger: Ledger) -> str:
    kinds = declared_destinations()
    if name in kinds:
        return f"integrations.{name}: no connection has this destination"
    return f"integrations.{name} names no connection or destination{nearest(name, [*ledger.connections, *kinds])}"
