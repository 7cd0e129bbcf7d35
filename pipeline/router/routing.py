"""Enriches and routes one hit with one version of the configuration.

Uses no Kafka, so that `hitrouter try` shows exactly what the router does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from pydantic import ValidationError

from pipeline.codec.avro import Framing
from pipeline.codec.drop_fields import FieldDropper
from pipeline.codec.integrations import LONGEST_REMEMBERED
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA, routed_to_avro
from pipeline.codec.routed_hit import FLAG_SENT_AT, encode_routed_hit, normal_time, time_text, with_options
from pipeline.config.models import Config
from pipeline.config.problems import describe_problem
from pipeline.destination import AnyOptions, Options
from pipeline.registry import declared_destinations, declared_enrichments
from pipeline.stages.classify import RawHit
from pipeline.stages.decide import Candidate, CheckOptions, Condition, Decisions, EventSelection, RoutingPlan
from pipeline.stages.enrich import Enricher, RequestFacts
from pipeline.stages.tracking_plan import TrackingPlan, Violation

_CACHED_TARGETS = 4096


class EnrichedHit(msgspec.Struct, gc=False):
    """`plain` is the routed hit as JSON, without options; `failed` holds the names of failed enrichments."""

    plain: bytes
    failed: Sequence[str]
    violation: Violation | None


class DecidedHit(msgspec.Struct, gc=False):
    """An enriched hit with one decision per connection."""

    plain: bytes
    decisions: Decisions
    failed: Sequence[str]
    violation: Violation | None


@dataclass(frozen=True, slots=True)
class _Shape:
    """Format of the hits of a connection that drops fields or uses Avro. Each hit is written once per distinct shape."""

    dropped: tuple[str, ...]
    dropper: FieldDropper = field(compare=False)
    framing: Framing | None

    def write(self, value: bytes) -> bytes:
        if self.dropped:
            value = self.dropper.drop(value)
        return value if self.framing is None else routed_to_avro(value, self.framing)


class _Target(NamedTuple):
    """Connections that receive the same value."""

    connections: Sequence[str]
    options: bytes | None
    shape: _Shape | None


class Routing:
    """Enriches and routes hits with one version of the configuration. `framings` are those of registered schemas.

    Raises ValueError or OSError if a file has changed or disappeared since the configuration was checked.
    """

    def __init__(self, config: Config, framings: Mapping[str, Framing] | None = None) -> None:
        self.version = config.version
        self.plans = {project: _routing_plan(config, project) for project in config.projects}
        self._enrich = Enricher(config.enrich, list(declared_enrichments().values()))
        self._tracking = {
            name: TrackingPlan.read(project.tracking_plan.files, project.tracking_plan.on_violation)
            for name, project in config.projects.items()
            if project.tracking_plan is not None
        }
        self._quarantining = {n: plan for n, plan in self._tracking.items() if plan.on_violation == "quarantine"}
        self._shapes = _shapes(config, framings or {})
        self._targets: dict[int, tuple[Decisions, list[_Target]]] = {}
        """Cache by id of the decisions. An entry holds a reference to them, so their id is not reused."""

    def quarantined(self, raw: RawHit) -> Violation | None:
        """Return the violation for which the project's tracking plan quarantines the hit, or None."""
        plan = self._quarantining.get(raw.project)
        return plan.violation(raw.hit.event_name, raw.hit.event) if plan is not None else None

    def route(self, raw: RawHit, appended_ms: int) -> DecidedHit:
        """Enrich the hit and decide which connections receive it.

        `appended_ms` is its Kafka timestamp (Unix milliseconds), used for hits without a received-at header.
        """
        return self.decided(raw, self.enriched(raw, appended_ms))

    def enriched(self, raw: RawHit, appended_ms: int) -> EnrichedHit:
        """Return the enriched hit; the first half of `route`."""
        hit = raw.hit
        received_at = time_text(raw.received_at_ms if raw.received_at_ms is not None else appended_ms)
        facts = RequestFacts(raw.request_ip, raw.user_agent)
        sent_at = received_at
        if hit.sent_at is not None:
            normal = normal_time(hit.sent_at)
            if normal is None:
                facts.flags = [FLAG_SENT_AT]
                facts.sent_at_text = hit.sent_at
            else:
                sent_at = normal
        violation = self._check_plan(raw) if self._tracking else None
        enriched = self._enrich(hit.context, facts)
        plain = encode_routed_hit(hit, raw.hit_id, raw.project, received_at, sent_at, enriched.context, raw.is_public)
        return EnrichedHit(plain, enriched.failed, violation)

    def decided(self, raw: RawHit, enriched: EnrichedHit) -> DecidedHit:
        """Return the enriched hit with its decisions; the second half of `route`."""
        decisions = self.plans[raw.project].decide(raw.hit, enriched.plain)
        return DecidedHit(enriched.plain, decisions, enriched.failed, enriched.violation)

    def values(self, routed: DecidedHit) -> list[tuple[Sequence[str], bytes]]:
        """Return each distinct value with the connections that receive it."""
        plain, decisions = routed.plain, routed.decisions
        cached = self._targets.get(id(decisions))
        if cached is None or cached[0] is not decisions:
            cached = (decisions, _targets(decisions, self._shapes))
            if sum(map(len, {found.options for found in decisions if found.options is not None})) <= LONGEST_REMEMBERED:
                if len(self._targets) >= _CACHED_TARGETS:
                    self._targets.clear()
                self._targets[id(decisions)] = cached
        return [
            (connections, plain if options is None and shape is None else _written(plain, options, shape))
            for connections, options, shape in cached[1]
        ]

    def _check_plan(self, raw: RawHit) -> Violation | None:
        plan = self._tracking.get(raw.project)
        if plan is None:
            return None
        hit = raw.hit
        violation = plan.violation(hit.event_name, hit.event)
        if violation is not None and plan.on_violation == "strip":
            hit.event, _ = plan.stripped(hit.event_name, hit.event)
        return violation


def _targets(decisions: Decisions, shapes: Mapping[str, _Shape]) -> list[_Target]:
    groups: dict[tuple[bytes | None, _Shape | None], list[str]] = {}
    for decision in decisions:
        if decision.reason is None and decision.fault is None:
            groups.setdefault((decision.options, shapes.get(decision.connection)), []).append(decision.connection)
    return [_Target(connections, options, shape) for (options, shape), connections in groups.items()]


def _written(plain: bytes, options: bytes | None, shape: _Shape | None) -> bytes:
    value = with_options(plain, options)
    return value if shape is None else shape.write(value)


def _shapes(config: Config, framings: Mapping[str, Framing]) -> dict[str, _Shape]:
    unregistered = Framing(ROUTED_HIT_SCHEMA)
    shapes = {}
    for name, connection in config.connections.items():
        framing = framings.get(name, unregistered) if connection.format == "avro" else None
        if connection.drop_fields or framing is not None:
            dropped = tuple(sorted(connection.drop_fields))
            shapes[name] = _Shape(dropped, FieldDropper(dropped), framing)
    return shapes


def _routing_plan(config: Config, project: str) -> RoutingPlan:
    candidates = []
    for name, connection in config.connections.items():
        destination = declared_destinations()[connection.destination]
        candidates.append(
            Candidate(
                name,
                destination.name,
                destination.aliases,
                connection.projects is None or project in connection.projects,
                EventSelection(connection.events) if connection.events is not None else None,
                Condition(connection.when) if connection.when is not None else None,
                connection.sample,
                None if destination.options is AnyOptions else _options_check(destination.options),
            )
        )
    return RoutingPlan(candidates)


def _options_check(model: type[Options]) -> CheckOptions:
    def check(options: bytes) -> tuple[str, str] | None:
        try:
            model.model_validate_json(options)
        except ValidationError as error:
            first = error.errors()[0]
            path = tuple(first["loc"])
            return describe_problem(first, path, model), ".".join(map(str, path))
        return None

    return check
