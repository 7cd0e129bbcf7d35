"""Tracking plans: validate events of a project by JSON Schema (json-schema.org; 2020-12 unless `$schema` names another)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import jsonschema_rs
import msgspec

from pipeline.config.plan_files import PlanFiles

OnViolation = Literal["warn", "strip", "quarantine"]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_ANY_EVENT = "*"
Place = tuple[str | int, ...]
_KEPT = (("name",), ("user",), ("user", "userId"), ("user", "anonymousId"))
_UNKNOWN_FORMAT = re.compile(r"Unknown format: '(.*)'\. ")
_NOT_RETRIEVED = " is not present in a registry and retrieving it failed: "
MOST_AT_ONE_PLACE = 100
"""Most violations of one object that `strip` handles. Each holds a copy of the object, and senders control their number."""
_ROUNDS = 20
"""Most rounds of `strip`: after each removal the rest is validated again."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Where an event breaks its plan; `path` begins with `event`."""

    path: str
    message: str


class TrackingPlan:
    """The plan of one project. `document` is a JSON Schema of `event`, or `{"events": {NAME: schema, "*": schema}}`.

    The schema `*` applies to all names without their own; if it is missing, they pass. `format` is validated in every version
    of JSON Schema. `$ref` is resolved from `files`, never from the network.
    Raises ValueError for an invalid schema or an unknown format.
    """

    def __init__(self, document: Any, on_violation: OnViolation, files: PlanFiles | None = None) -> None:
        self.on_violation = on_violation
        schemas = {_ANY_EVENT: document}
        if isinstance(document, dict) and document.keys() <= {"events", "$defs"} and "events" in document:
            schemas = document["events"]
            if not isinstance(schemas, dict):
                raise ValueError("events must be an object of schemas, one per event name")
        self._schemas = {name: _compiled(name, schema, document, files) for name, schema in schemas.items()}

    @classmethod
    def read(cls, files: PlanFiles, on_violation: OnViolation) -> TrackingPlan:
        """Read a plan from its files. Raises ValueError or OSError."""
        try:
            return cls(files.document(files.file), on_violation, files)
        except ValueError as error:
            message = str(error)
            raise ValueError(message if message.startswith(str(files.file)) else f"{files.file}: {message}") from None

    def violation(self, event_name: str, event: bytes) -> Violation | None:
        """Return the first violation of `event`, the JSON object of a hit; None if it is valid."""
        schema = self._schemas.get(event_name) or self._schemas.get(_ANY_EVENT)
        if schema is None:
            return None
        try:
            value = _decode(event)
        except msgspec.ValidationError as error:  # a number such as 1e999 is valid JSON, but no float
            return Violation("event", f"can't be checked: {error}")
        return _first(schema, value)

    def stripped(self, event_name: str, event: bytes) -> tuple[bytes, Violation | None]:
        """Return `event` without the members that its schema forbids, and the remaining violation, such as a missing member.

        The name and the identity in `user` are never removed. Only they are left if one object has more than MOST_AT_ONE_PLACE
        violations.
        """
        schema = self._schemas.get(event_name) or self._schemas[_ANY_EVENT]
        try:
            value = _decode(event)
        except msgspec.ValidationError:
            return event, self.violation(event_name, event)
        if _is_flooded(schema, value):
            value = _identity_of(value)
        for _ in range(_ROUNDS):
            places = {place for error in schema.iter_errors(value) for place in _wrong_places(error)}
            # Each place once, from the end, so that removals do not shift the indexes of earlier items of a list.
            if not sum([_remove(value, place) for place in sorted(places, key=_order, reverse=True)]):
                break
        return _encode(value), _first(schema, value)


def _compiled(name: str, schema: Any, document: Any, files: PlanFiles | None) -> Any:
    if schema is not document and isinstance(schema, dict) and "$defs" in document:
        schema = {"$defs": document["$defs"], **schema}
    try:
        return jsonschema_rs.validator_for(
            schema,
            validate_formats=True,
            ignore_unknown_formats=False,
            retriever=files.retrieve if files is not None else None,
            base_uri=files.base_uri if files is not None else None,
            offline=files is None,
        )
    except ValueError as error:
        unknown = _UNKNOWN_FORMAT.match(str(error))
        if unknown is not None:
            place = ".".join(map(str, getattr(error, "instance_path", ()))) or "format"
            raise ValueError(f"the schema of {name!r}, at {place}: {_unchecked(unknown[1])}") from None
        _, failed, why = str(error).partition(_NOT_RETRIEVED)
        if failed:
            raise ValueError(f"the schema of {name!r}: {why.splitlines()[0].removeprefix('ValueError: ')}") from None
        first = (str(error).splitlines() or ["no JSON Schema"])[0]
        raise ValueError(f"the schema of {name!r} is no JSON Schema: {first}") from None


def _unchecked(format_name: str) -> str:
    return f"nothing checks the format {format_name!r}; remove it, correct it, or set $schema to a version of JSON Schema that has it"


def _first(schema: Any, value: Any) -> Violation | None:
    """Return the first violation. `iter_errors` would collect all, each with a copy of the object: minutes for many wrong names."""
    try:
        schema.validate(value)
    except jsonschema_rs.ValidationError as error:
        path = ".".join(["event", *map(str, error.instance_path)])
        return Violation(path, str(error.message))
    return None


def _is_flooded(schema: Any, value: Any) -> bool:
    """Return whether one place of `value` has so many violations that `iter_errors` would take seconds."""
    places = Counter(error["instanceLocation"] for error in schema.evaluate(value).errors())
    return bool(places) and max(places.values()) > MOST_AT_ONE_PLACE


def _identity_of(event: dict[str, Any]) -> dict[str, Any]:
    left: dict[str, Any] = {name: event[name] for name in ("name", "user") if name in event}
    if isinstance(user := left.get("user"), dict):
        left["user"] = {name: user[name] for name in ("userId", "anonymousId") if name in user}
    return left


def _wrong_places(error: Any) -> list[Place]:
    """Return the places to remove for `error`; none if something is missing."""
    path, kind = tuple(error.instance_path), error.kind
    if kind.name in ("required", "dependentRequired"):
        return []
    unexpected = getattr(kind, "unexpected", None)
    places = [(*path, name) for name in unexpected] if unexpected else [path]
    return [place for place in places if place and place not in _KEPT]


def _order(place: Place) -> list[tuple[bool, str | int]]:
    return [(isinstance(step, str), step) for step in place]


def _remove(value: Any, place: Place) -> bool:
    try:
        for step in place[:-1]:
            value = value[step]
        del value[place[-1]]
    except (KeyError, IndexError, TypeError):
        return False  # already removed with its parent
    return True
