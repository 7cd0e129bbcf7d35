"""A Faust transport on confluent-kafka: one Faust message per batch of records, one Kafka transaction per batch."""

from __future__ import annotations

from pipeline.kafka.transport.app import batch_agent, build_app
from pipeline.kafka.transport.batch import AssignmentListener, Batch, BatchConsumer, BatchGuard, Outputs, Stateless
from pipeline.kafka.transport.consumer import TransactionalConsumer
from pipeline.kafka.transport.run import Wanted, run_app, run_apps
from pipeline.kafka.transport.settings import TransportSettings

__all__ = [
    "AssignmentListener",
    "Batch",
    "BatchConsumer",
    "BatchGuard",
    "Outputs",
    "Stateless",
    "TransactionalConsumer",
    "TransportSettings",
    "Wanted",
    "batch_agent",
    "build_app",
    "run_app",
    "run_apps",
]
