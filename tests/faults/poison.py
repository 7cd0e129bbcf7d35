"""Sends poison hits among good ones. Good ones must arrive; poison ones must become dead letters and arrive after the fix."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.models import Config
from pipeline.development.fault_server import FaultServer, Rule
from pipeline.operations.ledger import read_ledger
from tests.faults.workers import route_and_deliver
from tests.roles import dead, hit, put, wait_until, written

CONNECTION = "crm"
_ARRIVE_SECONDS = 1800.0
_BATCH = 1000


@dataclass(slots=True)
class PoisonReport:
    """Result of a run. `problems` is empty if the guarantee held; `letters` counts the dead letters by connection and reason."""

    letters: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def run_poison(
    config: Config, server: FaultServer, folder: Path, poison: int, hits: int, told: Callable[[str], None]
) -> PoisonReport:
    """Send `hits`, with `poison` of them evenly spread, to a webhook that answers these with 422; then repair it and replay."""
    names = [f"{'poison' if n * poison // hits != (n + 1) * poison // hits else 'good'}-{n}" for n in range(hits)]
    good = {name for name in names if name.startswith("good")}
    server.replace([Rule(contains="poison", status=422)])
    report = PoisonReport()
    try:
        with route_and_deliver(config, folder):
            for start in range(0, hits, _BATCH):
                part = names[start : start + _BATCH]
                put(config, *(hit(name, event={"name": "E", "user": {"userId": name}}) for name in part))
            told(f"{hits} hits are on their way")
            wait_until(lambda: len(server.taken) >= len(good), "every good hit", _ARRIVE_SECONDS)
            _settled(config, hits - len(good), len(good))
            letters = dead(config)
            for letter in letters:
                headers = {key: value.decode() for key, value in letter.headers() or [] if isinstance(value, bytes)}
                report.letters[headers["connection"], headers["reason"]] += 1
            _expect(report, "the good ones", set(server.taken), good)
            _expect(
                report, "the dead letters", {(letter.key() or b"").decode() for letter in letters}, set(names) - good
            )
            if report.letters != {(CONNECTION, "http_422"): len(names) - len(good)}:
                report.problems.append(f"dead letters by reason: {dict(report.letters)}")
            server.replace([])
            command = [
                "dead-letters",
                "replay",
                "--connection",
                CONNECTION,
                "--yes",
                "-c",
                str(written(config, folder)),
            ]
            subprocess.run([sys.executable, "-m", "pipeline", *command], check=True, timeout=_ARRIVE_SECONDS)
            told("the dead letters are sent again")
            wait_until(lambda: len(server.taken) >= hits, "the poison ones after the fix", _ARRIVE_SECONDS)
            _settled(config, 0, hits)
            _expect(report, "all after the fix", set(server.taken), set(names))
            if (most := max(server.taken.values())) > 1:
                report.problems.append(f"a hit was taken {most} times, and nothing had crashed")
            report.problems += read_ledger(config).problems
    except AssertionError as error:
        report.problems.append(str(error))
    return report


def _settled(config: Config, letters: int, delivered: int) -> None:
    """Wait until the ledger has these sums."""

    def told() -> bool:
        sums = read_ledger(config).connections[CONNECTION]
        return sums.delivered == delivered and sums.pending == 0 and (sums.dead == letters or not letters)

    wait_until(told, "the ledger", 120.0)


def _expect(report: PoisonReport, what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        report.problems.append(f"{what}: {len(expected - found)} missing, {len(found - expected)} too many")
