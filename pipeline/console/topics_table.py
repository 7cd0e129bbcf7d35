"""Renders the topics as a table and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.config.models import Config
from pipeline.kafka.topics.actual import ActualTopic
from pipeline.kafka.topics.declared import Topic, TopicNames, declare_topics
from pipeline.kafka.topics.differences import PARTITIONS, setting_text
from pipeline.kafka.topics.tools import tool_hints
from pipeline.operations.topics import Topics, TopicState, fixes_of

_HEAD = ("topic", "partitions", "replicas", "retention", "offsets", "state")


def topics_as_lines(config: Config, topics: Topics) -> Iterator[str]:
    """Yield a table with a row per topic, then each difference with the commands that fix it, then a conclusion."""
    rows = [_HEAD, *(_row(state) for state in topics.states)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    commands: list[str] = []
    if topics.safe.create:
        yield f"missing topics: {len(topics.safe.create)}; a role creates them when it starts, or create them now:"
        yield "    hitrouter topics --apply"
    for state in topics.states:
        for difference in state.differences:
            mark = "BREAKS THE GUARANTEE: " if difference.breaks_promise else ""
            yield f"{mark}{state.name}: {difference}"
            for line in fixes_of(config, topics, state, difference):
                commands.append(line)
                yield f"    {line}"
        if state.declared is None:
            yield f"{state.name}: {_removed(config, state)}"
    yield from tool_hints(config.kafka, commands)
    if topics.are_good:
        yield "No topic is missing, and none breaks the delivery guarantee."


def topics_as_json(config: Config, topics: Topics) -> dict[str, Any]:
    """Return the same for scripts; `ok` is True if the exit code is 0."""
    return {
        "ok": topics.are_good,
        "topics": [
            {
                "topic": state.name,
                "state": _state(state),
                "declared": _json_of(state.declared, _compared(state)),
                "actual": _json_of(state.actual, _compared(state)),
                "offsets": state.offsets,
                "backlog": state.backlog,
                "differences": [
                    {
                        "setting": difference.setting,
                        "declared": difference.declared,
                        "actual": difference.actual,
                        "severity": difference.severity.name.lower(),
                        "consequence": difference.consequence,
                        "mend": fixes_of(config, topics, state, difference),
                    }
                    for difference in state.differences
                ],
            }
            for state in topics.states
        ],
    }


def growth_hint(config: Config, partitions: int, connection: str | None, has_grown: bool) -> str:
    """Return the remaining steps after `--partitions`; `has_grown` says whether it has added partitions."""
    names = TopicNames(config.kafka.topic_prefix)
    topic = names.hits_raw if connection is None else names.deliveries(connection)
    key = "kafka.partitions" if connection is None else f"connections.{connection}.partitions"
    declared = next(found.partitions for found in declare_topics(config) if found.name == topic)
    to_set = f"Next: set {key}: {partitions} in the file." if declared != partitions else ""
    if has_grown:
        next_steps = "Running workers take over the new partitions; see docs/how-to/size-and-grow-topics.md."
        return f"{to_set} {next_steps}".lstrip()
    has = f"{topic} already has {partitions} partitions"
    return f"{has}. {to_set}" if to_set else f"Nothing to do: {has}, as the file declares."


def _row(state: TopicState) -> tuple[str, ...]:
    actual, declared = _cells(state.actual), _cells(state.declared)
    if state.actual is not None and all(difference.setting != PARTITIONS for difference in state.differences):
        declared = ("", *declared[1:])  # dead-letters may have fewer partitions than declared
    shown = (_both(*pair) for pair in zip(actual, declared, strict=True))
    return state.name, *shown, str(state.offsets) if state.actual else "-", _state(state)


def _cells(topic: Topic | ActualTopic | None) -> tuple[str, ...]:
    """Return partitions, replicas and retention as texts."""
    if topic is None:
        return ("", "", "")
    retention = setting_text("retention.ms", topic.settings["retention.ms"])
    return str(topic.partitions), str(topic.replication_factor), retention


def _both(actual: str, declared: str) -> str:
    return actual if not declared or actual == declared else f"{actual} (declared {declared})".lstrip()


def _state(state: TopicState) -> str:
    if state.actual is None:
        return "missing"
    if state.declared is None:
        return "not in the file"
    if not state.is_good:
        return "breaks the guarantee"
    return "differs" if state.differences else "as declared"


def _removed(config: Config, state: TopicState) -> str:
    connection = TopicNames(config.kafka.topic_prefix).connection_of(state.name)
    if not state.offsets:
        return f"connection {connection} is not in the file; its topic is empty"
    if state.backlog is None:
        return (
            f"connection {connection} is not in the file; its topic holds at most {state.offsets} hits, and no deliver "
            "worker has read it"
        )
    if not state.backlog:
        return f"connection {connection} is not in the file; all hits on its topic are delivered"
    return (
        f"connection {connection} is not in the file; at most {state.backlog} of its hits are not delivered, and expire "
        "after the retention; add it back to deliver them; `hitrouter ledger` shows their number"
    )


def _compared(state: TopicState) -> Iterable[str]:
    return state.declared.settings if state.declared is not None else ("cleanup.policy", "retention.ms")


def _json_of(topic: Topic | ActualTopic | None, settings: Iterable[str]) -> dict[str, Any] | None:
    if topic is None:
        return None
    return {
        "partitions": topic.partitions,
        "replication_factor": topic.replication_factor,
        "settings": {name: topic.settings[name] for name in settings if name in topic.settings},
    }
