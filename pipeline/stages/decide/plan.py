"""All connections as one project sees them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

from pipeline.codec.hit import DecodedHit
from pipeline.codec.integrations import LONGEST_REMEMBERED, Integrations
from pipeline.stages.decide.condition import ConditionFailed, Situations
from pipeline.stages.decide.decision import Candidate, Decision, Decisions, FilterReason, decide
from pipeline.stages.decide.sample import in_sample

_REMEMBERED = 4096
_Key = TypeVar("_Key", bound=Hashable)


class RoutingPlan:
    """Decides about hits, and remembers the decisions about dictionaries that come again: senders use few.

    What depends on more than dictionary and event name (`when`, `sample`) is asked for each hit, of the connections that
    say so only.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = tuple(candidates)
        self._names = {"All"} | {name for c in candidates for name in (c.connection, c.destination, *c.aliases)}
        self._selects = any(candidate.events is not None for candidate in candidates)
        asked = [c for c in candidates if c.serves_project and (c.when is not None or c.sample < 1.0)]
        self._asked = {candidate.connection: candidate for candidate in asked}
        conditions = [candidate.when for candidate in asked if candidate.when is not None]
        self._situations = Situations(conditions) if conditions else None
        self._remembered: dict[tuple[bytes | None, str], Decisions] = {}
        self._merged: dict[tuple[int, tuple[FilterReason | None, ...]], tuple[Decisions, Decisions]] = {}

    def decide(self, hit: DecodedHit, routed_hit: bytes) -> Decisions:
        """One decision per connection; `routed_hit` is the enriched hit as JSON, which conditions look at."""
        key = (hit.integrations.raw, hit.event_name if self._selects else "")
        decisions = self._remembered.get(key)
        if decisions is None:
            decisions = tuple(self._static(hit, candidate) for candidate in self.candidates)
            if len(key[0] or b"") + len(key[1]) > LONGEST_REMEMBERED:
                return self._with_asked(hit, routed_hit, decisions, False) if self._asked else decisions
            _remember(self._remembered, key, decisions)
        return self._with_asked(hit, routed_hit, decisions, True) if self._asked else decisions

    def _static(self, hit: DecodedHit, candidate: Candidate) -> Decision:
        if not candidate.serves_project:
            return Decision(candidate.connection, FilterReason.OTHER_PROJECT)
        if candidate.events is not None and not candidate.events.selects(hit.event_name):
            return Decision(candidate.connection, FilterReason.EVENT_NOT_SELECTED)
        return decide(hit.integrations, candidate)

    def _with_asked(self, hit: DecodedHit, routed_hit: bytes, decisions: Decisions, remember: bool) -> Decisions:
        """`when` and `sample` come before what the dictionary says, and behind project and events."""
        situation: Any = None
        reasons: list[FilterReason | None] = []
        for decision in decisions:
            candidate = self._asked.get(decision.connection)
            reason = None
            if candidate is not None and decision.reason is not FilterReason.EVENT_NOT_SELECTED:
                if candidate.when is not None:
                    try:
                        if situation is None and self._situations is not None:
                            situation = self._situations.of(routed_hit)
                        reason = None if candidate.when.holds(situation) else FilterReason.WHEN_FALSE
                    except ConditionFailed:
                        reason = FilterReason.WHEN_FAILED
                if reason is None and candidate.sample < 1.0 and not in_sample(hit.identity, candidate.sample):
                    reason = FilterReason.SAMPLED_OUT
            reasons.append(reason)
        key = (id(decisions), tuple(reasons))
        merged = self._merged.get(key)
        if merged is None or merged[0] is not decisions:
            result = tuple(
                decision if reason is None else Decision(decision.connection, reason)
                for decision, reason in zip(decisions, reasons, strict=True)
            )
            merged = (decisions, result)
            if remember:
                _remember(self._merged, key, merged)
        return merged[1]

    def unknown_names(self, integrations: Integrations) -> list[str]:
        """Names in the dictionary that no connection answers to."""
        return [name for name in integrations.entries if name not in self._names]


def _remember(memory: dict[_Key, Any], key: _Key, value: Any) -> None:
    if len(memory) >= _REMEMBERED:
        memory.clear()
    memory[key] = value
