"""Kafka: the connection's own topic is the destination."""

from __future__ import annotations

from pipeline.destination import Destination

destination = Destination(
    name="Kafka",
    summary="Writes hits to the topic deliveries-<connection>, for your own consumers.",
    delivery_guarantee="Each hit once for read_committed consumers, within the dedupe window.",
)
