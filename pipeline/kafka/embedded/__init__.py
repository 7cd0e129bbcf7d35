"""Runs a real Apache Kafka from package registries on this machine, for `hitrouter up`, the demo and the tests."""

from __future__ import annotations

from pipeline.kafka.embedded.broker import EmbeddedBroker, EmbeddedCluster
from pipeline.kafka.embedded.jars import fetch_jars
from pipeline.kafka.embedded.run import run

__all__ = ["EmbeddedBroker", "EmbeddedCluster", "fetch_jars", "run"]
