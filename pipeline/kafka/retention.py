"""Refreshes the retention of topics for the metrics, since an operator may change it at any time."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.topics import topic_retention_ms
from pipeline.telemetry.backlog import OldestByTopic

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 300.0
_RETRY_SECONDS = 30.0
_CHECK_SECONDS = 0.5
_PATIENCE_SECONDS = 2.0
"""Short, because the requesting thread delays the exit of the process."""


async def follow_retention(stopped: Callable[[], bool], kafka: KafkaConfig, oldest: OldestByTopic) -> None:
    """Read the retention of the topics of `oldest` every few minutes, and when topics are added, until `stopped`."""
    known: frozenset[str] = frozenset()
    due = time.monotonic()
    while not stopped():
        topics = frozenset(oldest.by_topic)
        if topics and (time.monotonic() >= due or not topics <= known):
            try:
                found = await asyncio.to_thread(topic_retention_ms, kafka, topics, _PATIENCE_SECONDS)
            except BrokerUnavailable as error:
                logger.warning("topic retention not known yet, will retry: error=%s", error)
                due = time.monotonic() + _RETRY_SECONDS
            else:
                for topic, pending in oldest.by_topic.items():
                    if topic in found:
                        retention_ms = found[topic]
                        pending.retention_seconds = math.inf if retention_ms is None else retention_ms / 1000
                due = time.monotonic() + _REFRESH_SECONDS
            known = topics
        await asyncio.sleep(_CHECK_SECONDS)
