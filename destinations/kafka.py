"""Kafka: the connection's own topic is the destination."""

from __future__ import annotations

from pipeline.destination import Destination

destination = Destination(
    name="Kafka",
    summary="The topic deliveries-<connection>, for consumers of your own.",
    delivery_guarantee="Each hit once for a read_committed reader, within the dedupe window.",
)
