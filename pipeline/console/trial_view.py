"""Renders the result of `hitrouter try` as text."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.highlighter import JSONHighlighter

from pipeline.codec.printable import escape_controls, readable_json
from pipeline.operations.try_hit import Trial

_HIGHLIGHTER = JSONHighlighter()


def print_trial(console: Console, trial: Trial) -> None:
    """Print the enriched hit, then the decision for each connection."""

    def line(text: str, style: str | None = None) -> None:
        console.print(escape_controls(text), style=style, markup=False, soft_wrap=True)

    def value(value: Any) -> None:
        console.print(_HIGHLIGHTER(readable_json(value)), soft_wrap=True)

    if trial.refused is not None:
        result = (
            "becomes a dead letter"
            if trial.quarantined
            else "the intake responds with 400 (a record from Kafka becomes a dead letter)"
        )
        line(f"project {trial.project}: {result}: {trial.refused}", "red")
        return
    line(f"project {trial.project}: the enriched hit", "bold")
    value(trial.enriched)
    for note in trial.notes:
        line(f"note: {note}", "yellow")
    for preview in trial.previews:
        console.print()
        title = f"{preview.connection} ({preview.destination}): "
        if preview.reason is not None:
            more = f": {preview.message}" if preview.message else ""
            line(f"{title}does not get it: {preview.reason}{more}", "red")
            continue
        line(f"{title}gets it, on {preview.topic}", "green")
        if preview.record != trial.enriched:
            line("  record:")
            value(preview.record)
        if preview.avro is not None:
            line("  in Avro:")
            value(dict(preview.avro))
        if preview.sends is not None:
            same = isinstance(preview.sends, dict) and preview.sends.get("body") == preview.record
            line("  sends:")
            value({**preview.sends, "body": "(the record)"} if same else preview.sends)
