"""Loads the configuration and checks everything that it names; reports all problems at once."""

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
    """Read and check `file`, or a `kept` version of it. For `secrets_needed` see `load_config`.

    `warn` receives a line for each valid setting that is probably a mistake, see `warnings_about`. Raises ConfigurationError
    with all problems as `file:line: path: what is wrong`.
    """
    return load_config(
        file, environment, problems_of, kept, secrets_needed=secrets_needed, advise=warnings_about, warn=warn
    )


def input_files(config: Config) -> list[Path]:
    """Return the files that `config` names. A change of one of them is a change of the configuration."""
    return config.input_files


def problems_of(config: Config) -> Iterator[Problem]:
    """Yield the problems that only destinations, conditions, tracking plans and databases can detect."""
    for enrichment in declared_enrichments().values():
        try:
            enrichment.prepare(config.enrich)
        except (ValueError, OSError) as error:
            yield ("enrich", enrichment.name), _error_text(error)
    for name, message in property_problems(config.kafka.client):
        yield ("kafka", "client", *([name] if name else ())), message
    yield from _address_collisions(config)
    yield from _duplicate_keys(config)
    for name, project in config.projects.items():
        plan = project.tracking_plan
        if plan is not None:
            try:
                TrackingPlan.read(plan.files, plan.on_violation)
            except (ValueError, OSError) as error:
                yield ("projects", name, "tracking_plan", "schema"), _error_text(error)
    for name, connection in config.connections.items():
        for path, message in _connection_problems(connection):
            yield ("connections", name, *path), message
        for position, wanted in enumerate(connection.projects or ()):
            if wanted not in config.projects:
                yield (
                    ("connections", name, "projects", position),
                    f"unknown project {wanted!r}{nearest(wanted, config.projects)}",
                )


def warnings_about(config: Config) -> Iterator[Problem]:
    """Yield warnings about a valid file: retentions shorter than other settings need, and URLs that are always refused."""
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
            f"{_text(kept.hits_raw)} is shorter than dedupe.window, {_text(window)}, which is used instead; "
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
                f"{_text(retention)}{inherited} is shorter than delivery.give_up_after, {_text(give_up_after)}: waiting "
                "hits expire before they become dead letters; make the retention longer, or give_up_after shorter",
            )
    longest, seconds = max(others, key=lambda other: other[1])
    if kept.ledger < seconds:
        yield (
            ("kafka", "retention", "ledger"),
            f"{_text(kept.ledger)} is shorter than {'.'.join(map(str, longest))}, {_text(seconds)}: the ledger loses the "
            f"counts of hits that are still stored, and which dead letters were replayed; make it at least {_text(seconds)}",
        )


def _private_addresses(config: Config) -> Iterator[Problem]:
    """Yield URLs in private networks. Host names are not resolved."""
    known = declared_destinations()
    for name, connection in config.connections.items():
        if connection.delivery.allow_private or not isinstance(known[connection.destination].sink, Http):
            continue
        try:
            host = urlsplit(str(connection.settings.get("url", ""))).hostname or ""
            is_private = host == "localhost" or not is_public(host)
        except ValueError:  # a host name, or not an address
            continue
        if is_private:
            yield (
                ("connections", name, "settings", "url"),
                "the address is in a private network, so every request is refused; "
                "set delivery.allow_private to allow it",
            )


def _text(seconds: float) -> str:
    return duration_text(round(seconds * 1000))


def _duplicate_keys(config: Config) -> Iterator[Problem]:
    """Yield keys of two projects, and keys that are both secret and public in one project."""
    seen: dict[bytes, tuple[str, str]] = {}
    for name, project in config.projects.items():
        for kind in ("tokens", "public_keys", "data_streams"):
            for position, key in enumerate(getattr(project, kind)):
                owner, other = seen.setdefault(digest_of(key), (name, kind))
                if owner != name:
                    yield ("projects", name, kind, position), f"{owner} has the same key; each project needs its own"
                elif (other, kind) == ("tokens", "public_keys"):
                    message = (
                        "is also in `tokens`; a key is either secret or public, so create another one for browsers"
                    )
                    yield ("projects", name, kind, position), message


def _address_collisions(config: Config) -> Iterator[Problem]:
    """Yield pairs of `up` processes with the same address: the later one could never start."""
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
        return f"{other.owner} also listens on {other.address}; set a different address for each"
    return (
        f"{listener.owner} serves its {listener.use} on {listener.address}, and {other.owner} listens on {other.address}; "
        "each slot uses three ports, starting at that of `admin.listen`; set different addresses"
    )


def _error_text(error: ValueError | OSError) -> str:
    return f"{error.filename} cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)


def _connection_problems(connection: ConnectionConfig) -> Iterator[Problem]:
    known = declared_destinations()
    destination = known.get(connection.destination)
    if destination is None:
        yield (
            ("destination",),
            f"unknown destination {connection.destination!r}{nearest(connection.destination, known)}",
        )
    else:
        try:
            destination.settings.model_validate(connection.settings)
        except ValidationError as error:
            for problem in error.errors():
                path = tuple(problem["loc"])
                yield ("settings", *path), describe_problem(problem, path, destination.settings)
        if destination.sink is None and "delivery" in connection.model_fields_set:
            yield ("delivery",), f"has no effect for {destination.name}, which only writes to its topic; remove it"
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
