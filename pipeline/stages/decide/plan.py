"""The routing plan of one project: all connections with their rules."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

from pipeline.codec.hit import DecodedHit
from pipeline.codec.integrations import LONGEST_REMEMBERED, Integrations
from pipeline.stages.decide.condition import ConditionFailed, ConditionInputs
from pipeline.stages.decide.decision import Candidate, Decision, Decisions, FilterReason, decide
from pipeline.stages.decide.sample import in_sample

_REMEMBERED = 4096
_Key = TypeVar("_Key", bound=Hashable)


class RoutingPlan:
    """Decides for all connections, and caches decisions by `integrations` and event name: senders use few distinct ones.

    The dynamic rules `when` and `sample` depend on more than that. So they are evaluated for each hit, only for connections
    that have them.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = tuple(candidates)
        self._names = {"All"} | {name for c in candidates for name in (c.connection, c.destination, *c.aliases)}
        self._selects = any(candidate.events is not None for candidate in candidates)
        dynamic = [c for c in candidates if c.serves_project and (c.when is not None or c.sample < 1.0)]
        self._dynamic = {candidate.connection: candidate for candidate in dynamic}
        conditions = [candidate.when for candidate in dynamic if candidate.when is not None]
        self._condition_inputs = ConditionInputs(conditions) if conditions else None
        self._remembered: dict[tuple[bytes | None, str], Decisions] = {}
        self._merged: dict[tuple[int, tuple[FilterReason | None, ...]], tuple[Decisions, Decisions]] = {}

    def decide(self, hit: DecodedHit, routed_hit: bytes) -> Decisions:
        """Return one decision per connection; `routed_hit` is the enriched hit as JSON, for conditions."""
        key = (hit.integrations.raw, hit.event_name if self._selects else "")
        decisions = self._remembered.get(key)
        if decisions is None:
            decisions = tuple(self._static(hit, candidate) for candidate in self.candidates)
            if len(key[0] or b"") + len(key[1]) > LONGEST_REMEMBERED:
                return self._with_dynamic(hit, routed_hit, decisions, False) if self._dynamic else decisions
            _remember(self._remembered, key, decisions)
        return self._with_dynamic(hit, routed_hit, decisions, True) if self._dynamic else decisions

    def _static(self, hit: DecodedHit, candidate: Candidate) -> Decision:
        if not candidate.serves_project:
            return Decision(candidate.connection, FilterReason.OTHER_PROJECT)
        if candidate.events is not None and not candidate.events.selects(hit.event_name):
            return Decision(candidate.connection, FilterReason.EVENT_NOT_SELECTED)
        return decide(hit.integrations, candidate)

    def _with_dynamic(self, hit: DecodedHit, routed_hit: bytes, decisions: Decisions, remember: bool) -> Decisions:
        """Apply `when` and `sample`: their reasons override those of `integrations`, but not those of project and events."""
        inputs: Any = None
        reasons: list[FilterReason | None] = []
        for decision in decisions:
            candidate = self._dynamic.get(decision.connection)
            reason = None
            if candidate is not None and decision.reason is not FilterReason.EVENT_NOT_SELECTED:
                if candidate.when is not None:
                    try:
                        if inputs is None and self._condition_inputs is not None:
                            inputs = self._condition_inputs.read(routed_hit)
                        reason = None if candidate.when.holds(inputs) else FilterReason.WHEN_FALSE
                    except ConditionFailed:
                        reason = FilterReason.WHEN_FAILED
                if reason is None and candidate.sample < 1.0 and not in_sample(hit.identity, candidate.sample):
                    reason = FilterReason.SAMPLED_OUT
            reasons.append(reason)
        # The cached value holds `decisions`, so its id cannot be reused while the entry exists; `is not` checks it.
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
        """Return names in `integrations` that match no connection."""
        return [name for name in integrations.entries if name not in self._names]


def _remember(memory: dict[_Key, Any], key: _Key, value: Any) -> None:
    if len(memory) >= _REMEMBERED:
        memory.clear()
    memory[key] = value
