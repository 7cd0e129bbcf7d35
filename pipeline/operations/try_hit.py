"""Previews one hit: runs the stages of intake, router and destinations without Kafka and without sending a request."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.codec.avro import Framing, single_object_header
from pipeline.codec.drop_fields import FieldDropper
from pipeline.codec.printable import readable_value
from pipeline.codec.raw_record import DOOR, PUBLIC
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.config.load import unset_variables
from pipeline.config.models import Config
from pipeline.delivery.age import too_old
from pipeline.delivery.deliverers import ReadHit, RoutedHits, event_of
from pipeline.delivery.redaction import Redaction
from pipeline.destination import (
    BigQuery,
    ClickHouse,
    Destination,
    Files,
    Http,
    HttpRequest,
    Postgres,
    Rejected,
    Settings,
    Skipped,
)
from pipeline.errors import ConfigurationError
from pipeline.kafka.topics import TopicNames
from pipeline.operations.unknown_names import unknown_name
from pipeline.registry import read_settings_without_secrets
from pipeline.router.routing import DecidedHit, Routing
from pipeline.sinks.table_row import keyed_row_of, row_of
from pipeline.stages.classify import Dead, RawHit, Rekey, classify_raw


@dataclass(frozen=True, slots=True)
class Preview:
    """The result at one connection: the `record` on its topic and what its sink `sends`; or the `reason` why it gets no hit.

    `reason` is None if the connection gets the hit. `avro` holds the record in base64 and its framing, if the connection
    uses Avro.
    """

    connection: str
    destination: str
    reason: str | None
    message: str = ""
    topic: str = ""
    record: Any = None
    avro: Mapping[str, str] | None = None
    sends: Any = None


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of trying one hit. `refused` is the reason if no connection gets it; `enriched` is the hit without options.

    The intake accepts a hit that a tracking plan has `quarantined`, and the router makes it a dead letter. The intake refuses
    all other hits for which `refused` is set.
    """

    project: str
    refused: str | None
    enriched: Any = None
    notes: tuple[str, ...] = ()
    previews: tuple[Preview, ...] = ()
    quarantined: bool = False


def try_hit(
    config: Config,
    body: bytes,
    project: str | None,
    request_ip: str | None,
    user_agent: str | None,
    is_public: bool = False,
) -> Trial:
    """Return what would happen to the hit in `body`. Reads only the files that the configuration names.

    Without `project`, the first project of the file sends it. `is_public`: the hit comes in by a public door.
    """
    if not config.projects:
        raise ConfigurationError(
            ["the configuration has no project; add one under `projects`, since each hit needs one"]
        )
    project = project or next(iter(config.projects))
    headers = {"project": project, "request-ip": request_ip, "user-agent": user_agent}
    named = [(name, text.encode()) for name, text in headers.items() if text is not None]
    if is_public:
        named.append((DOOR, PUBLIC))
    now_ms = round(time.time() * 1000)
    found = classify_raw(body, None, named, "hits-raw", 0, 0, 1, config.projects)
    if isinstance(found, Rekey):  # the router writes it again with its key; this is what it then reads
        found = classify_raw(body, found.key, found.headers, "hits-raw", found.partition, 0, 1, config.projects)
    if isinstance(found, Dead):
        where = "" if found.message.startswith(found.path) else f"{found.path}: "
        return Trial(project, f"{found.reason}: {where}{found.message}")
    assert isinstance(found, RawHit)
    routing = Routing(config)
    violation = routing.quarantined(found)
    if violation is not None:
        return Trial(project, f"plan_violation: {violation.path}: {violation.message}", quarantined=True)
    sent = bytes(found.hit.event)  # copied before a plan strips members
    routed = routing.route(found, now_ms)
    values = {name: value for names, value in routing.values(routed) for name in names}
    notes = [f"the enrichment {name} failed" for name in routed.failed]
    if routed.violation is not None:
        notes.append(f"breaks the tracking plan at {routed.violation.path}: {routed.violation.message}")
    enriched = readable_value(routed.plain)
    if config.projects[project].tracking_plan is not None:
        removed = _removed_paths(readable_value(sent), enriched["event"], "event")
        notes += [f"the tracking plan removes {', '.join(removed)}"] if removed else []
    for decision in routed.decisions:
        notes += [
            f"drop_fields of {decision.connection}: this hit has no {field}"
            for field in (config.connections[decision.connection].drop_fields if decision.reason is None else ())
            # Options are added later, for each connection.
            if field.split(".")[0] != "options" and FieldDropper([field]).drop(routed.plain) == routed.plain
        ]
    notes += [
        unknown_name(name, config.connections) for name in routing.plans[project].unknown_names(found.hit.integrations)
    ]
    return Trial(project, None, enriched, tuple(notes), tuple(_previews(config, routed, values, now_ms / 1000)))


def _removed_paths(before: Any, after: Any, path: str) -> list[str]:
    """Return the paths that `before` has and `after` has not. For a list with another length, returns the path of the list."""
    if isinstance(before, dict) and isinstance(after, dict):
        removed = [f"{path}.{name}" for name in before if name not in after]
        return removed + [
            below for name in after for below in _removed_paths(before.get(name), after[name], f"{path}.{name}")
        ]
    if isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            return [f"items of {path}"]
        pairs = zip(before, after, strict=True)
        return [below for number, pair in enumerate(pairs) for below in _removed_paths(*pair, f"{path}.{number}")]
    return []


def _previews(config: Config, routed: DecidedHit, values: dict[str, bytes], now_seconds: float) -> list[Preview]:
    names = TopicNames(config.kafka.topic_prefix)
    hits = RoutedHits(Framing(ROUTED_HIT_SCHEMA))
    previews = []
    for decision in routed.decisions:
        name = decision.connection
        destination, settings = read_settings_without_secrets(config.connections[name])
        unset = unset_variables(config.connections[name].settings)
        if decision.reason is not None:
            previews.append(Preview(name, destination.name, decision.reason.value))
            continue
        if decision.fault is not None:
            fault = decision.fault
            previews.append(Preview(name, destination.name, "invalid_options", f"{fault.path}: {fault.message}"))
            continue
        read = hits.read(values[name])
        assert isinstance(read, ReadHit)
        sends: Any = None
        if isinstance(destination.sink, Http) and unset:
            sends = {"not_shown": f"the request needs {' and '.join(unset)}; set any valid value to see the request"}
        elif isinstance(destination.sink, Http):
            sends = _sends(destination, destination.sink, read, settings, now_seconds)
        elif isinstance(destination.sink, Postgres | ClickHouse | BigQuery):
            row = row_of(read.hit) if isinstance(destination.sink, ClickHouse) else keyed_row_of(read.hit)
            sends = {"table": destination.sink.table(settings), "row": row._asdict()}
        elif isinstance(destination.sink, Files):
            sends = {"folder": destination.sink.folder(settings), "format": destination.sink.format(settings)}
        avro = _avro(values[name], config) if config.connections[name].format == "avro" else None
        previews.append(
            Preview(name, destination.name, None, "", names.deliveries(name), readable_value(read.value), avro, sends)
        )
    return previews


def _avro(value: bytes, config: Config) -> dict[str, str]:
    length = len(single_object_header(ROUTED_HIT_SCHEMA))
    framing = f"single object: 2 bytes of marker and 8 bytes of schema fingerprint, {value[:length].hex(' ')}"
    if config.kafka.schema_registry is not None:
        framing += "; with the schema registry, the router writes 00 and the schema id in 4 bytes instead"
    return {"framing": framing, "base64": base64.b64encode(value).decode()}


def _sends(
    destination: Destination, sink: Http, read: ReadHit, settings: Settings, now_seconds: float
) -> dict[str, Any]:
    event = event_of(destination, sink, read, settings)
    event = too_old(event, sink.limits, now_seconds) or event
    if isinstance(event, Skipped):
        return {"skipped": event.reason}
    if isinstance(event, Rejected):
        return {"rejected": event.reason, "message": event.message}
    return _readable(sink.request([event], settings, now_seconds), Redaction.of(settings))


def _readable(request: HttpRequest, redaction: Redaction) -> dict[str, Any]:
    try:
        body: Any = readable_value(request.body)
    except ValueError:
        body = request.body.decode(errors="replace")
    return {
        "method": request.method,
        "url": redaction.address(request.url),
        "headers": redaction.headers(request.headers),
        "body": redaction.value(body),
    }
