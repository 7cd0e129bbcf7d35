"""`on_kafka_failure: spill`: accepted hits are kept on this machine's disk while Kafka is unavailable."""

from __future__ import annotations

from pipeline.intake.spill.log import SpillFull, SpillLog, left_behind
from pipeline.intake.spill.store import SpillingStore

__all__ = ["SpillFull", "SpillLog", "SpillingStore", "left_behind"]
