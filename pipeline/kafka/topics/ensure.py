"""Checks the topics when a role starts: creates missing ones, rejects some differences and reports the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.config.models import Config, KafkaConfig
from pipeline.errors import BrokerUnavailable, TopicMismatch
from pipeline.kafka.client import client_properties
from pipeline.kafka.patience import PATIENCE_SECONDS
from pipeline.kafka.topics.actual import ActualTopic, read_actual
from pipeline.kafka.topics.changes import create_topics, wait_visible
from pipeline.kafka.topics.commands import fixes_for
from pipeline.kafka.topics.declared import Topic, declare_topics
from pipeline.kafka.topics.differences import Difference, compare_topics
from pipeline.kafka.topics.safe_changes import SafeChanges, missing_topics, safe_changes
from pipeline.kafka.topics.tools import tool_hints

logger = logging.getLogger(__name__)

_LOGGED_AT_MOST = 20
_REMEMBERED = 10_000
_logged: set[Difference] = set()
"""Differences that this process has logged; the check runs again when the file changes and after a failure."""


def ensure_topics(config: Config, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Create missing topics, and compare the existing ones with their declaration. Blocks; changes no existing topic.

    Logs harmless differences once per process. Raises TopicMismatch, with commands that fix it, for differences that break
    the delivery guarantee; KafkaRefuses if a topic may not be created; and BrokerUnavailable after `patience_seconds`.
    """
    kafka, declared = config.kafka, declare_topics(config)
    admin = AdminClient(client_properties(kafka))
    try:
        actual = read_or_create(admin, kafka, declared, patience_seconds)
    except KafkaException as error:
        raise BrokerUnavailable(
            f"Kafka at {kafka.servers} does not respond: {error.args[0].str()}; check that it is running"
        ) from error
    finally:
        admin.poll(0)  # runs the log callback
    differences = compare_topics(declared, actual)
    report([difference for difference in differences if not difference.breaks_promise])
    broken = [difference for difference in differences if difference.breaks_promise]
    if broken:
        safe = safe_changes(declared, actual)
        raise _mismatch(kafka, broken, {topic.name: topic for topic in declared}, actual, safe)


def read_or_create(
    admin: AdminClient, kafka: KafkaConfig, declared: Iterable[Topic], patience_seconds: float
) -> dict[str, ActualTopic]:
    """Create missing topics; return all declared topics as they are in Kafka. Raises KafkaException, BrokerUnavailable."""
    topics = {topic.name: topic for topic in declared}
    deadline = time.monotonic() + patience_seconds
    actual = read_actual(admin, kafka, topics, patience_seconds)
    missing = missing_topics(topics.values(), actual)
    if not missing:
        return actual
    create_topics(admin, kafka, missing, max(1.0, deadline - time.monotonic()))
    return wait_visible(admin, kafka, topics, lambda topic: True, max(1.0, deadline - time.monotonic()))


def report(differences: list[Difference]) -> None:
    """Log the differences that this process has not logged yet, in at most 21 lines."""
    new = [difference for difference in differences if difference not in _logged]
    if len(_logged) > _REMEMBERED:
        _logged.clear()
    _logged.update(new)
    for difference in new[:_LOGGED_AT_MOST]:
        logger.warning("topic differs from the file: topic=%s difference=%s", difference.topic, difference)
    if new:
        more = max(0, len(new) - _LOGGED_AT_MOST)
        logger.warning(
            "topics differ: differences=%d not_shown=%d advice=%s", len(new), more, "run `hitrouter topics` to see all"
        )


def _mismatch(
    kafka: KafkaConfig,
    broken: list[Difference],
    declared: Mapping[str, Topic],
    actual: Mapping[str, ActualTopic],
    safe: SafeChanges,
) -> TopicMismatch:
    lines = ["topics break the delivery guarantee; fix each of them, then start again:"]
    for difference in broken:
        lines.append(f"  {difference.topic}: {difference}")
        topic = declared[difference.topic]
        commands = fixes_for(kafka, difference, topic, actual[topic.name], safe)
        lines += [f"    {command}" for command in commands]
    return TopicMismatch("\n".join([*lines, *(f"  {hint}" for hint in tool_hints(kafka, lines))]))
