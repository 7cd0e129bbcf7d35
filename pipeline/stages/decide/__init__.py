"""Decide: which connections get a hit, with which options, and why others do not (contract.md, section 3)."""

from __future__ import annotations

from pipeline.stages.decide.condition import Condition
from pipeline.stages.decide.decision import (
    Candidate,
    CheckOptions,
    Decision,
    Decisions,
    FilterReason,
    OptionsFault,
    decide,
)
from pipeline.stages.decide.events import EventSelection
from pipeline.stages.decide.plan import RoutingPlan
from pipeline.stages.decide.sample import in_sample

__all__ = [
    "Candidate",
    "CheckOptions",
    "Condition",
    "Decision",
    "Decisions",
    "EventSelection",
    "FilterReason",
    "OptionsFault",
    "RoutingPlan",
    "decide",
    "in_sample",
]
