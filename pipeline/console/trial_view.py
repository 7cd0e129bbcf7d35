"""A trial as text."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from pipeline.operations.try_hit import Trial


def print_trial(console: Console, trial: Trial) -> None:
    """The enriched hit, then every connection with its decision."""
    if trial.refused is not None:
        fate = (
            "goes to the dead letters" if trial.quarantined else "the intake answers 400, by Kafka it is a dead letter"
        )
        console.print(
            f"project {trial.project}: {fate}: {trial.refused}",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        return
    console.print(f"project {trial.project}: the enriched hit", style="bold", soft_wrap=True)
    console.print_json(data=trial.enriched)
    for note in trial.notes:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
    for outlook in trial.outlooks:
        console.print()
        title = f"{outlook.connection} ({outlook.destination}): "
        if outlook.reason is None:
            console.print(f"{title}gets it, on {outlook.topic}", style="green", markup=False, soft_wrap=True)
            if outlook.record != trial.enriched:
                _show(console, "its record", outlook.record)
            if outlook.avro is not None:
                _show(console, "in Avro", dict(outlook.avro))
            if outlook.sends is not None:
                same = isinstance(outlook.sends, dict) and outlook.sends.get("body") == outlook.record
                _show(console, "sends", {**outlook.sends, "body": "(the record)"} if same else outlook.sends)
        else:
            more = f": {outlook.message}" if outlook.message else ""
            console.print(f"{title}does not get it: {outlook.reason}{more}", style="red", markup=False, soft_wrap=True)


def _show(console: Console, what: str, value: Any) -> None:
    console.print(f"  {what}:", markup=False, soft_wrap=True)
    console.print_json(data=value)
