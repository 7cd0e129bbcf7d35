"""Renders the ledger as a table with explanations."""

from __future__ import annotations

import time

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.codec.printable import escape_controls
from pipeline.codec.routed_hit import time_text
from pipeline.operations.ledger_pauses import Pause
from pipeline.operations.ledger_sums import Backlog, ConnectionSums, Ledger, SetAsideHits
from pipeline.operations.moments import duration_text
from pipeline.operations.unknown_names import unknown_name

_ALWAYS_SHOWN = ("unique", "routed", "delivered", "pending")
# fmt: off
_COLUMNS = (
    "unique", "filtered", "refused", "earlier", "routed", "replayed",
    "delivered", "skipped", "dead", "expired", "missing", "pending",
)
# fmt: on
_NEAR_EXPIRY = 0.2
"""A backlog line is bold if less than this share of the retention is left."""


def print_ledger(console: Console, ledger: Ledger, now_ms: float | None = None) -> None:
    """Print hits, connections, waiting hits, pauses, reasons and problems, and whether everything adds up."""
    now_ms = time.time() * 1000 if now_ms is None else now_ms

    def line(text: str, style: str | None = None) -> None:
        console.print(escape_controls(text), style=style, markup=False, highlight=False, soft_wrap=True)

    hits = ledger.hits
    console.print(f"received {hits.received} = unique {hits.unique} + duplicates {hits.duplicates} + dead {hits.dead}")
    if hits.conflicting:
        console.print(
            f"conflicting duplicates, whose content differs from the first hit with their hitId: {hits.conflicting}"
        )
    if not ledger.is_complete:
        line(_beginning(ledger))
    console.print(_connections(ledger))
    for name, backlog in ledger.backlogs.items():
        if backlog.offsets:
            line(*_backlog(name, backlog, ledger, now_ms))
    for name, hits_aside in sorted(ledger.set_aside.items()):
        line(_set_aside(name, hits_aside, now_ms))
    for name, pause in sorted(ledger.pauses.items()):
        line(_pause(name, pause, ledger), "bold")
    for name in ledger.removed:
        line(_removed(name, ledger), "bold")
    for (connection, outcome, reason), count in sorted(ledger.reasons.items()):
        shown_for = f" ({connection})" if connection else ""
        line(f"  {outcome:9} {count:6}  {reason}{shown_for}")
    for (outcome, reason), count in ledger.notes.most_common(20):
        line(f"  note      {count:6}  {outcome} {reason}")
    for name, count in ledger.unknown_names.most_common(10):
        line(f"  unknown   {count:6}  {unknown_name(name, ledger.connections)}")
    for name in ledger.expired:
        line(_expired(name, ledger), "bold red")
    if ledger.set_aside_expired_at_most:
        hits_lost = _hits(ledger.set_aside_expired_at_most, False)
        line(f"EXPIRED: {hits_lost} that were set aside, deleted by retention before they were retried", "bold red")
    for problem in ledger.problems:
        line(f"WRONG: {problem}", "bold red")
    if ledger.adds_up:
        console.print("Everything adds up.", style="green")


def _connections(ledger: Ledger) -> Table:
    columns = {name: [_cell(sums, name) for sums in ledger.connections.values()] for name in _COLUMNS}
    shown = [name for name, cells in columns.items() if name in _ALWAYS_SHOWN or any(cell != "0" for cell in cells)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("connection", overflow="fold")
    for column in shown:
        table.add_column(column, justify="right", min_width=len(column))
    for name, sums in ledger.connections.items():
        table.add_row(Text(escape_controls(name)), *(_cell(sums, column) for column in shown))
    return table


def _cell(sums: ConnectionSums, column: str) -> str:
    """Return the count as text; a range such as `0-15` if the exact number of expired hits is unknown."""
    if column == "expired" and sums.expired < sums.expired_at_most:
        return f"{sums.expired}-{sums.expired_at_most}"
    return str(getattr(sums, column))


def _beginning(ledger: Ledger) -> str:
    if ledger.begins_ms is None:
        return "Retention has deleted all entries of the ledger: only waiting hits are shown, and no other counts."
    return (
        f"The ledger begins at {time_text(ledger.begins_ms)}; retention has deleted older entries. Hits that were routed "
        "before, and got an outcome since or still wait, are counted as earlier."
    )


def _backlog(name: str, backlog: Backlog, ledger: Ledger, now_ms: float) -> tuple[str, str | None]:
    """Return a line such as `crm: oldest hit 5 d 2 h old, expires in 1 d 22 h`, and its style."""
    parts = []
    if backlog.oldest_ms is not None:
        parts.append(f"oldest hit {duration_text((now_ms - backlog.oldest_ms) / 1000)} old")
    style = None
    if backlog.expires_ms is not None and backlog.retention_ms is not None:
        left_ms = backlog.expires_ms - now_ms
        parts.append(f"expires in {duration_text(left_ms / 1000)}" if left_ms > 0 else "can expire at any moment")
        style = "bold" if left_ms < _NEAR_EXPIRY * backlog.retention_ms else None
    elif backlog.oldest_ms is not None:
        parts.append("never expires")
    if not name:
        count = _hits(backlog.offsets if backlog.records is None else backlog.records, backlog.records is not None)
        no_worker = "; NO ROUTER RUNS: start `hitrouter route`"
        text = f"not routed yet: {', '.join([count, *parts])}"
    else:
        no_worker = "; NO WORKER DELIVERS: start `hitrouter deliver`"
        text = (
            f"{name}: {', '.join(parts)}" if parts else f"{name}: {_hits(backlog.offsets, False)} in open transactions"
        )
    if backlog.has_worker or name in ledger.removed:
        return text, style
    return text + no_worker, "bold"


def _set_aside(name: str, hits: SetAsideHits, now_ms: float) -> str:
    left_seconds = (hits.next_ms - now_ms) / 1000
    again = f"in {duration_text(left_seconds)}" if left_seconds > 0 else "now"
    return f"{name}: {_hits(hits.count)} set aside: {hits.message}; next retry {again}"


def _pause(name: str, pause: Pause, ledger: Ledger) -> str:
    since = time_text(pause.since_ms)
    waiting = max(0, ledger.connections[name].pending) if name in ledger.connections else 0
    state = "MISCONFIGURED" if pause.is_misconfigured else "FAILING"
    return f"{state}: {name} since {since}: {pause.message}; {_hits(waiting) if waiting else 'no hits'} waiting"


def _removed(name: str, ledger: Ledger) -> str:
    sums = ledger.connections[name]
    parts = []
    if lost := sums.expired + sums.missing:
        parts.append(f"{_hits(lost)} without an outcome, no longer on its topic")
    if sums.pending:
        parts.append(f"{_hits(sums.pending)} undelivered; add it back to the file to deliver them")
    return f"REMOVED: {name}: {'; '.join(parts)}"


def _hits(count: int, is_exact: bool = True) -> str:
    return f"{'' if is_exact else 'up to '}{count:,} {'hit' if count == 1 else 'hits'}"


def _expired(name: str, ledger: Ledger) -> str:
    least, most = ledger.expired[name]
    hits = _hits(most, least == most)
    if not name:
        return f"EXPIRED: {hits} of hits-raw, deleted by retention before a router read them"
    backlog = ledger.backlogs.get(name, Backlog())
    may_be_held = backlog.unrecorded > 0 and backlog.has_worker
    held = "; a worker that holds some of them in memory can still deliver those" if may_be_held else ""
    return f"EXPIRED: {name}: {hits}, deleted by retention before delivery{held}"
