"""The checked configuration: everything that the file names is tried once, and all that is wrong is told at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from pipeline.codec.drop_fields import FieldDropper
from pipeline.codec.durations import duration_text
from pipeline.codec.public_address import is_public
from pipeline.config import Config, ConnectionConfig, load_config
from pipeline.config.addresses import Listener, collide, listeners_of
from pipeline.config.load import KeptVersion
from pipeline.config.problems import KeyPath, Problem, describe_problem, nearest
from pipeline.config.values import digest_of
from pipeline.destination import Http
from pipeline.errors import ConfigurationError
from pipeline.kafka.client import property_problems
from pipeline.registry import declared_destinations, declared_enrichments
from pipeline.stages.decide import Condition
from pipeline.stages.tracking_plan import TrackingPlan


def load_checked(
    file: Path,
    environment: Mapping[str, str] = os.environ,
    kept: KeptVersion | None = None,
    *,
    secrets_needed: bool = True,
    warn: Callable[[str], object] = lambda line: None,
) -> Config:
    """Read and check `file`, or a `kept` version of it; without `secrets_needed` as load_config says.

    `warn` gets a line for each setting that is valid and still does what its author hardly wants, see `advice_about`.
    Raises ConfigurationError that holds all problems as `file:line: path: what is wrong`.
    """
    return load_config(
        file, environment, problems_of, kept, secrets_needed=secrets_needed, advise=advice_about, warn=warn
    )


def input_files(config: Config) -> list[Path]:
    """What `config` reads beside itself: a change of one of them is a change of the configuration."""
    return config.input_files


def problems_of(config: Config) -> Iterator[Problem]:
    """What only the destinations, conditions, plans and databases themselves know."""
    for enrichment in declared_enrichments().values():
        try:
            enrichment.prepare(config.enrich)
        except (ValueError, OSError) as error:
            yield ("enrich", enrichment.name), _said(error)
    for name, message in property_problems(config.kafka.client):
        yield ("kafka", "client", *([name] if name else ())), message
    yield from _same_addresses(config)
    yield from _same_keys(config)
    for name, project in config.projects.items():
        plan = project.tracking_plan
        if plan is not None:
            try:
                TrackingPlan.read(plan.files, plan.on_violation)
            except (ValueError, OSError) as error:
                yield ("projects", name, "tracking_plan", "schema"), _said(error)
    for name, connection in config.connections.items():
        for path, message in _connection_problems(connection):
            yield ("connections", name, *path), message
        for position, wanted in enumerate(connection.projects or ()):
            if wanted not in config.projects:
                yield (
                    ("connections", name, "projects", position),
                    f"no such project {wanted!r}{nearest(wanted, config.projects)}",
                )


def advice_about(config: Config) -> Iterator[Problem]:
    """Yield retentions that are too short for the rest of the file, and addresses that are never asked. The file is valid."""
    yield from _private_addresses(config)
    kept, window = config.kafka.retention, config.dedupe.window
    others: list[tuple[KeyPath, float]] = [
        (("kafka", "retention", "hits_raw"), max(kept.hits_raw, window)),
        (("kafka", "retention", "deliveries"), kept.deliveries),
        (("kafka", "retention", "dead_letters"), kept.dead_letters),
    ]
    if kept.hits_raw < window:
        yield (
            ("kafka", "retention", "hits_raw"),
            f"{_text(kept.hits_raw)} is shorter than dedupe.window, {_text(window)}, and is raised to it; "
            "set it to at least the window, or shorten the window",
        )
    known = declared_destinations()
    for name, connection in config.connections.items():
        path = ("connections", name, "retention")
        retention = kept.deliveries if connection.retention is None else connection.retention
        others.append((path, retention))
        give_up_after = connection.delivery.give_up_after
        if known[connection.destination].sink is not None and retention < give_up_after:
            inherited = " from kafka.retention.deliveries" if connection.retention is None else ""
            yield (
                path,
                f"{_text(retention)}{inherited} is shorter than delivery.give_up_after, {_text(give_up_after)}: hits that "
                "wait expire before they become dead letters; make the retention longer, or give up earlier",
            )
    longest, seconds = max(others, key=lambda other: other[1])
    if kept.ledger < seconds:
        yield (
            ("kafka", "retention", "ledger"),
            f"{_text(kept.ledger)} is shorter than {'.'.join(map(str, longest))}, {_text(seconds)}: the ledger forgets hits "
            f"that are still kept, and which dead letters were replayed; make it at least {_text(seconds)}",
        )


def _private_addresses(config: Config) -> Iterator[Problem]:
    """Only what the file itself shows: no name is resolved."""
    known = declared_destinations()
    for name, connection in config.connections.items():
        if connection.delivery.allow_private or not isinstance(known[connection.destination].sink, Http):
            continue
        try:
            host = urlsplit(str(connection.settings.get("url", ""))).hostname or ""
            is_private = host == "localhost" or not is_public(host)
        except ValueError:  # a name, or no address at all
            continue
        if is_private:
            yield (
                ("connections", name, "settings", "url"),
                "the address belongs to a private network, so every request is refused; "
                "set delivery.allow_private to allow it",
            )


def _text(seconds: float) -> str:
    return duration_text(round(seconds * 1000))


def _same_keys(config: Config) -> Iterator[Problem]:
    """Keys that name two projects, or one project by a secret and a public door."""
    seen: dict[bytes, tuple[str, str]] = {}
    for name, project in config.projects.items():
        for kind in ("tokens", "public_keys", "data_streams"):
            for position, key in enumerate(getattr(project, kind)):
                owner, other = seen.setdefault(digest_of(key), (name, kind))
                if owner != name:
                    yield ("projects", name, kind, position), f"{owner} has the same; each needs its own"
                elif (other, kind) == ("tokens", "public_keys"):
                    message = "is one of `tokens`, too; a key is either secret or public, make another for browsers"
                    yield ("projects", name, kind, position), message


def _same_addresses(config: Config) -> Iterator[Problem]:
    """Two of `up` that listen in one place: the later one would end, again and again."""
    known: list[Listener] = []
    try:
        for listener in listeners_of(config):
            other = next((other for other in known if collide(other.address, listener.address)), None)
            if other is not None:
                yield listener.setting, _collision(other, listener)
            known.append(listener)
    except ConfigurationError as error:
        yield ("admin", "listen"), str(error)


def _collision(other: Listener, listener: Listener) -> str:
    if listener.owner in ("intake", "intake-0"):
        return f"{other.owner} listens on {other.address}, too; give each its own"
    return (
        f"{listener.owner} serves its {listener.use} on {listener.address}, and {other.owner} listens on {other.address}; "
        "each slot takes three ports, from `admin.listen` on; give each its own"
    )


def _said(error: ValueError | OSError) -> str:
    return f"{error.filename} can't be read: {error.strerror}" if isinstance(error, OSError) else str(error)


def _connection_problems(connection: ConnectionConfig) -> Iterator[Problem]:
    known = declared_destinations()
    destination = known.get(connection.destination)
    if destination is None:
        yield (
            ("destination",),
            f"no such destination {connection.destination!r}{nearest(connection.destination, known)}",
        )
    else:
        try:
            destination.settings.model_validate(connection.settings)
        except ValidationError as error:
            for problem in error.errors():
                path = tuple(problem["loc"])
                yield ("settings", *path), describe_problem(problem, path, destination.settings)
        if destination.sink is None and "delivery" in connection.model_fields_set:
            yield ("delivery",), f"is not for {destination.name}: the topic is the destination, and nothing is sent"
    if connection.when is not None:
        try:
            Condition(connection.when)
        except ValueError as error:
            yield ("when",), str(error)
    for position, field in enumerate(connection.drop_fields):
        try:
            FieldDropper([field])
        except ValueError as error:
            yield ("drop_fields", position), str(error)
