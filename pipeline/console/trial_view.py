"""A trial as text."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.highlighter import JSONHighlighter

from pipeline.codec.printable import escape_controls, readable_json
from pipeline.operations.try_hit import Trial

_HIGHLIGHTER = JSONHighlighter()


def print_trial(console: Console, trial: Trial) -> None:
    """The enriched hit, then every connection with its decision."""

    def line(text: str, style: str | None = None) -> None:
        console.print(escape_controls(text), style=style, markup=False, soft_wrap=True)

    def value(value: Any) -> None:
        console.print(_HIGHLIGHTER(readable_json(value)), soft_wrap=True)

    if trial.refused is not None:
        fate = (
            "goes to the dead letters" if trial.quarantined else "the intake answers 400, by Kafka it is a dead letter"
        )
        line(f"project {trial.project}: {fate}: {trial.refused}", "red")
        return
    line(f"project {trial.project}: the enriched hit", "bold")
    value(trial.enriched)
    for note in trial.notes:
        line(f"note: {note}", "yellow")
    for outlook in trial.outlooks:
        console.print()
        title = f"{outlook.connection} ({outlook.destination}): "
        if outlook.reason is not None:
            more = f": {outlook.message}" if outlook.message else ""
            line(f"{title}does not get it: {outlook.reason}{more}", "red")
            continue
        line(f"{title}gets it, on {outlook.topic}", "green")
        if outlook.record != trial.enriched:
            line("  its record:")
            value(outlook.record)
        if outlook.avro is not None:
            line("  in Avro:")
            value(dict(outlook.avro))
        if outlook.sends is not None:
            same = isinstance(outlook.sends, dict) and outlook.sends.get("body") == outlook.record
            line("  sends:")
            value({**outlook.sends, "body": "(the record)"} if same else outlook.sends)
