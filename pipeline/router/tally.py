"""Counts the results of one partition of a batch for its ledger entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from pipeline.codec.bounded_counts import CountsFolder
from pipeline.codec.ledger_entry import REASON_BYTES, Entry, others_of
from pipeline.codec.printable import shorten_bytes
from pipeline.router.results import (
    INVALID_OPTIONS,
    PLAN_VIOLATION,
    DeadLettered,
    Duplicate,
    OtherResult,
    Rekeyed,
    Replayed,
    ReplaySkipped,
    Routed,
)
from pipeline.stages.decide import Decisions, RoutingPlan

_MOST_NAMES = 1_000
"""Limit of unknown integration names and paths that are counted one by one in a batch."""


class _Group(msgspec.Struct, gc=False):
    """The number of hits of a project with the same decisions."""

    project: str
    decisions: Decisions
    hits: int = 0


class Tally:
    """Adds results up. `plans` holds the routing plan of each project."""

    def __init__(self, plans: Mapping[str, RoutingPlan]) -> None:
        self._plans = plans
        self._counts: Counter[Entry] = Counter()
        # There are few distinct decisions, which many hits share, so count per decisions object. The group holds a reference
        # to it, so its id is not reused meanwhile.
        self._groups: dict[tuple[str, int], _Group] = {}
        self._folder = CountsFolder(self._counts, _MOST_NAMES, others_of)

    def add(self, result: OtherResult) -> None:
        """Count any result but a routed hit."""
        counts = self._counts
        match result:
            case Duplicate(project=project, is_conflicting=is_conflicting):
                counts[Entry(project, "", "received")] += 1
                counts[Entry(project, "", "duplicate")] += 1
                if is_conflicting:
                    counts[Entry(project, "", "conflicting")] += 1
            case DeadLettered(dead=dead):
                counts[Entry(dead.project, "", "received")] += 1
                counts[Entry(dead.project, "", "dead", dead.reason)] += 1
            case Rekeyed():
                counts[Entry("", "", "rekeyed")] += 1
            case Replayed(raw=raw):
                counts[Entry(raw.project, raw.replay_to or "", "replayed")] += 1
            case ReplaySkipped(project=project, reason=reason):
                counts[Entry(project, "", "replay_skipped", reason)] += 1

    def add_routed(self, result: Routed) -> None:
        """Count a routed hit."""
        hit, project = result.hit, result.raw.project
        decisions = hit.decisions
        key = (project, id(decisions))
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(project, decisions)
        group.hits += 1
        integrations = result.raw.hit.integrations
        if integrations.entries:
            for name in self._plans[project].unknown_names(integrations):
                self._counts[Entry(project, "", "unknown_integration", shorten_bytes(name, REASON_BYTES))] += 1
            self._folder.fold()
        for enrichment in hit.failed:
            self._counts[Entry(project, "", "enrichment_failed", enrichment)] += 1
        if hit.violation is not None:
            self._counts[Entry(project, "", PLAN_VIOLATION, shorten_bytes(hit.violation.path, REASON_BYTES))] += 1
            self._folder.fold()

    def counts(self) -> Counter[Entry]:
        """Return the counts of all results; call it once."""
        counts = self._counts
        for group in self._groups.values():
            project, hits = group.project, group.hits
            counts[Entry(project, "", "received")] += hits
            counts[Entry(project, "", "unique")] += hits
            for decision in group.decisions:
                name = decision.connection
                if decision.reason is not None:
                    counts[Entry(project, name, "filtered", decision.reason.value)] += hits
                elif decision.fault is not None:
                    counts[Entry(project, name, "dead", INVALID_OPTIONS)] += hits
                else:
                    counts[Entry(project, name, "routed")] += hits
        return counts
