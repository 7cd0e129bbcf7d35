"""The contract for destination authors: a destination is one file in `destinations/` with one `Destination`.

The file declares settings, options and limits, and three pure functions: they turn a hit into an event, several events into a request,
and a response into outcomes. The deliverer handles retries, batches, rates, HTTP connections, clocks and dead letters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from pipeline.config.values import HttpUrl as HttpUrl  # for settings
from pipeline.config.values import trimmed
from pipeline.message import Message, read_message

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class RoutedHit(msgspec.Struct, gc=False):
    """A hit as a record of a deliveries topic (contract.md, section 2). `Raw` parts are JSON; times are ISO 8601 text."""

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
    door: str = "secret"
    """The kind of door it was sent to: `secret` or `public`. Two hits with the same hitId can differ in it."""

    @property
    def is_public(self) -> bool:
        """True if it was sent to a public door, so that a stranger may have sent it."""
        return self.door == "public"

    @property
    def idempotency_key(self) -> str:
        """The key by which a receiver drops repeats: the hitId, or for a public hit a hash of it (32 hex digits).

        A stranger may know or guess a hitId. With equal keys, a receiver would drop a server's hit as a repeat of the stranger's.
        """
        if not self.is_public:
            return self.hitId
        return hashlib.blake2b(self.hitId.encode(), digest_size=16, person=b"public").hexdigest()


class Settings(BaseModel):
    """Base class of a destination's settings, which the operator writes under `settings`. Unknown keys are errors.

    A setting is a secret if its name contains secret, token, key or password, or if it is marked with `Field(repr=False)`, such as an
    address that contains a key. pipeline/redaction.py hides secrets wherever text is shown or stored.

    Text with leading or trailing white space is an error, unless `free_texts` names the setting. For example, a key with the line
    feed of its file would be answered 401 for every hit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    free_texts: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _trimmed(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name not in cls.free_texts:
            for text in value if isinstance(value, list) else (value,):
                if isinstance(text, str):
                    trimmed(text)
        return value


class Options(BaseModel):
    """Base class of a destination's options, which the sender writes under the destination's name in `integrations`.

    A hit with invalid options becomes a dead letter of this connection, with the path of the error. Unknown keys are invalid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class AnyOptions(Options):
    """Options of destinations that forward them: every object is valid."""

    model_config = ConfigDict(extra="allow", frozen=True)


class NoSettings(Settings):
    """A destination without settings."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The destination has accepted the hit."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A temporary failure, such as a network error, 408, 425, 429 or 5xx: the hit is sent again.

    `after_seconds` is the pause that the destination asked for. If it is 0 and other events of the request have final outcomes, the
    event is sent again at once. For `said` see Rejected.
    """

    reason: str
    after_seconds: float | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A final failure: the hit becomes a dead letter.

    `said` is the text of the response, redacted and cut; the deliverer sets it. It may contain personal data of the hit, so it is
    written to dead letters and the ledger, but never to a log.
    """

    reason: str
    message: str
    said: str = ""

    @property
    def text(self) -> str:
        """The message and the text of the response, for the dead letter."""
        return f"{self.message}: {self.said}" if self.said else self.message


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """The operator must act, for example after 401, 403 or 410: the connection pauses. For `said` see Rejected.

    `is_answer`: the destination itself answered so, perhaps because of the content of the hit. False means that it has not seen the
    hit, for example because a proxy refused the connection.
    """

    message: str
    said: str = ""
    is_answer: bool = True


@dataclass(frozen=True, slots=True)
class Skipped:
    """The destination does not need the hit; it is not sent."""

    reason: str


Outcome = Delivered | Retry | Rejected | Misconfigured | Skipped


@dataclass(frozen=True)
class Delivery:
    """One hit for one connection. `value` is the whole routed hit as JSON; `settings` and `options` are validated."""

    hit: RoutedHit
    value: bytes
    settings: Any
    options: Any

    @cached_property
    def message(self) -> Message:
        """The content of the hit, in one form for all dialects. Destinations should read this, not `event`."""
        return read_message(_decode(self.hit.event), self.hit.context, self.hit.sentAt, self.hit.receivedAt)

    @property
    def event(self) -> dict[str, Any]:
        """The event as the client sent it."""
        return self.message.event

    @property
    def context(self) -> dict[str, Any]:
        """The context of the client with the derived members."""
        return self.message.context

    @property
    def name(self) -> str:
        """The name of the event; "" if it is not text."""
        return self.message.name

    @property
    def time(self) -> str:
        """Time of the event, ISO 8601 in UTC. A wrong client clock cannot make it later than `receivedAt`."""
        return self.message.time

    @property
    def time_ms(self) -> int:
        """`time` in Unix milliseconds."""
        return self.message.time_ms

    @property
    def properties(self) -> dict[str, Any]:
        """The properties of the event, without its name and user."""
        return self.message.properties

    def unsupported(self) -> Skipped | None:
        """Return the outcome of identify, group and alias calls for a destination that accepts only events; None for events."""
        kind = self.message.type
        return Skipped(f"no_{kind}_calls") if kind in ("identify", "group", "alias") else None


@dataclass(frozen=True, slots=True)
class Event:
    """The part of a request that one hit becomes. Only events with the same `group` share a request.

    The deliverer sets `time_ms`, if `Limits` has a maximum age.
    """

    hit_id: str
    body: bytes
    group: Hashable = None
    time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request to a destination. Header values and the query of `url` never appear in logs."""

    method: str
    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """The response: header names in lower case, `retry-after` always in seconds, at most 64 KiB of the body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """Return the decoded body; None if it is not JSON, not UTF-8, or nested too deeply."""
        try:
            return _decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


def judge(response: HttpResponse, events: Sequence[Event] = ()) -> Outcome:
    """Return the outcome by the status alone (contract.md, section 6), for destinations that do not report errors per event.

    A rejected request of several events is sent again in halves, until the event that causes the error is found.
    """
    status = response.status
    if 200 <= status < 300:
        return Delivered()
    if status in (408, 425, 429) or status >= 500:
        retry_after = response.headers.get("retry-after", "").strip()
        return Retry(f"http_{status}", float(retry_after) if retry_after.isdigit() else None)
    if status in (401, 403, 410):
        return Misconfigured(f"the destination answers {status}; check the connection's settings")
    if 300 <= status < 400:
        # Redirects are not followed. A redirect to a new address or a login page applies to every hit.
        return Misconfigured(f"the destination answers {status}, a redirect; configure the address that it points to")
    return Rejected(f"http_{status}", f"the destination answers {status}")


def encode_json(value: Any) -> bytes:
    """Return `value` as JSON; `msgspec.Raw` parts are inserted unchanged."""
    return _encode(value)


def fitting_id(hit_id: str, fits: re.Pattern[str]) -> str:
    """Return the hitId if `fits` matches all of it, else a hash of it: 32 hex digits, the same at each attempt."""
    return hit_id if fits.fullmatch(hit_id) else hashlib.blake2b(hit_id.encode(), digest_size=16).hexdigest()


def json_list(events: Sequence[Event]) -> bytes:
    """Return the bodies of `events` as one JSON array."""
    return b"[" + b",".join(event.body for event in events) + b"]"


Verdict = Outcome | Sequence[Outcome]
"""One outcome for the whole request, or one per event in order."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the destination: events and bytes per request, and events per second if it documents a rate.

    `oldest_seconds` is the maximum age of an event. It is checked before each attempt, since the destination would drop older events or
    assign a wrong date. After a backlog, an outage or a replay, such an event becomes a dead letter with the reason `too_old`.
    """

    events: int = 1
    request_bytes: int = 1_000_000
    per_second: float | None = None
    oldest_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Http:
    """The HTTP sink. `request` receives at most `limits.events` events of one group, and the current Unix time in seconds."""

    event: Callable[[Delivery], Event | Skipped | Rejected]
    request: Callable[[Sequence[Event], Any, float], HttpRequest]
    verdict: Callable[[HttpResponse, Sequence[Event]], Verdict] = judge
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Files:
    """The files sink. Its functions read the `folder` (a path, or the address of a bucket) and the `format` from the settings.

    `options` returns those of the object store: region, endpoint, credentials.
    """

    folder: Callable[[Any], str]
    format: Callable[[Any], str]
    options: Callable[[Any], Mapping[str, str]] = lambda settings: {}


@dataclass(frozen=True, slots=True)
class Postgres:
    """The PostgreSQL sink. Its functions read the database address and the table from the settings."""

    dsn: Callable[[Any], str]
    table: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class ClickHouse:
    """The ClickHouse sink. Its functions read address, user, password, database and table from the settings."""

    url: Callable[[Any], str]
    user: Callable[[Any], str]
    password: Callable[[Any], str]
    database: Callable[[Any], str]
    table: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class BigQuery:
    """The BigQuery sink. Its functions read the table (`project.dataset.table`), a key or key file, and two addresses from the settings."""

    table: Callable[[Any], str]
    key: Callable[[Any], str | None]
    key_file: Callable[[Any], str | None]
    url: Callable[[Any], str]
    storage_url: Callable[[Any], str]
    limits: Limits


Sink = Http | Files | Postgres | ClickHouse | BigQuery


@dataclass(frozen=True, slots=True)
class Destination:
    """A kind of destination. `name` and `aliases` are its keys in `integrations`. Without a `sink`, hits are only written to its topic."""

    name: str
    summary: str
    settings: type[Settings] = NoSettings
    options: type[Options] = AnyOptions
    sink: Sink | None = None
    aliases: tuple[str, ...] = ()
    documentation: str = ""
    delivery_guarantee: str = ""
