"""The contract for destination authors: a destination is one file in `destinations/` that holds one `Destination`.

It declares its settings and transforms a routed hit into what its sink sends. Retry, batching, connections and files are the
sink's; a destination decides nothing but what to send and how to read the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict

from pipeline.config.models import HttpUrl as HttpUrl  # for settings


class RoutedHit(msgspec.Struct, gc=False):
    """A hit as a deliveries topic holds it (contract.md, section 2). `Raw` parts are JSON; times are ISO 8601 texts."""

    hitId: str
    projectId: str
    receivedAt: str
    sentAt: str
    event: msgspec.Raw
    context: msgspec.Raw
    userId: str | None = None
    anonymousId: str | None = None
    integrations: msgspec.Raw = msgspec.Raw(b"null")
    options: msgspec.Raw = msgspec.Raw(b"null")


class Settings(BaseModel):
    """Base of a destination's settings: what the operator writes under `settings`; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Options(BaseModel):
    """Base of a destination's options: what the sender writes under the destination's name in `integrations`.

    A hit whose options do not fit becomes a dead letter of this connection, with the path; unknown keys do not fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class AnyOptions(Options):
    """For destinations that pass the options on: every object fits."""

    model_config = ConfigDict(extra="allow", frozen=True)


class NoSettings(Settings):
    """A destination without settings."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The destination has it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now: network, 408, 425, 429 or 5xx; `after_seconds` as the destination asked."""

    reason: str
    after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Never: this hit goes to the dead letters."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """The operator must act (401, 403, 410): the connection waits."""

    message: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """The destination has no use for it."""

    reason: str


Outcome = Delivered | Retry | Rejected | Misconfigured | Skipped


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What the http sink sends."""

    method: str
    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def judge_status(status: int, retry_after: str | None) -> Outcome:
    """The outcome of an HTTP answer (contract.md, section 6), for destinations without per-event answers."""
    if 200 <= status < 300:
        return Delivered()
    if status in (408, 425, 429) or status >= 500:
        seconds = float(retry_after) if retry_after is not None and retry_after.strip().isdigit() else None
        return Retry(f"http_{status}", seconds)
    if status in (401, 403, 410):
        return Misconfigured(f"the destination answers {status}; check the connection's settings")
    return Rejected(f"http_{status}", f"the destination answers {status}")


@dataclass(frozen=True, slots=True)
class Http:
    """The http sink: `transform` makes the request of one hit; `value` are the hit's bytes as they are on the topic."""

    transform: Callable[[RoutedHit, bytes, Any], HttpRequest | Skipped]


@dataclass(frozen=True, slots=True)
class Files:
    """The files sink: `folder` and `format` are read from the settings."""

    folder: Callable[[Any], str]
    format: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Destination:
    """A kind of destination. `name` and `aliases` are its keys in `integrations`; `sink` None: the topic is all."""

    name: str
    summary: str
    settings: type[Settings] = NoSettings
    options: type[Options] = AnyOptions
    sink: Http | Files | None = None
    aliases: tuple[str, ...] = ()
    documentation: str = ""
    delivery_guarantee: str = ""
