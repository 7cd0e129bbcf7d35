"""The contract for destination authors: a destination is one file in `destinations/` that holds one `Destination`.

It declares its settings, options and limits, and three pure functions: what one hit becomes, how a request is made of several, and
what an answer means. Retry, batching, pace, connections, clocks and dead letters are the deliverer's; none of it is in the file.
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
    door: str = "secret"
    """By which kind of door it came in: `secret` or `public`. Two hits with one hitId may differ in it."""

    @property
    def is_public(self) -> bool:
        """Whether strangers could have sent it."""
        return self.door == "public"

    @property
    def idempotency_key(self) -> str:
        """What a receiver may drop repeats by: the hitId; of a public door a hash of it, 32 hex digits.

        Strangers know or guess hitIds. A receiver that drops repeats would drop a server's hit behind theirs.
        """
        if not self.is_public:
            return self.hitId
        return hashlib.blake2b(self.hitId.encode(), digest_size=16, person=b"public").hexdigest()


class Settings(BaseModel):
    """Base of a destination's settings: what the operator writes under `settings`; unknown keys are refused.

    A setting is a secret when its name holds secret, token, key or password, or when it is marked by `Field(repr=False)`, such as an
    address that is a key. pipeline/redaction.py hides both wherever a text is shown or kept.

    White space at an end of a text is refused, unless the setting is one of `free_texts`: a key with the new line of its
    file would be answered 401 for every hit.
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
    """Not now: network, 408, 425, 429 or 5xx; `after_seconds` as the destination asked, 0 beside outcomes of others: at once.

    `said` is what the destination answered, as in Rejected.
    """

    reason: str
    after_seconds: float | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Never: this hit goes to the dead letters.

    `said` is the text of the destination's answer, redacted and bounded; the deliverer fills it in. It may hold personal data of the
    hit, so it goes where the hit goes (dead letters) and to the ledger, but never into a log.
    """

    reason: str
    message: str
    said: str = ""

    @property
    def text(self) -> str:
        """Message and answer, for the dead letter."""
        return f"{self.message}: {self.said}" if self.said else self.message


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """The operator must act (401, 403, 410): the connection waits. `said` as in Rejected.

    `is_answer`: the destination has answered so, perhaps for what is in the hit; False: it has not seen the hit.
    """

    message: str
    said: str = ""
    is_answer: bool = True


@dataclass(frozen=True, slots=True)
class Skipped:
    """The destination has no use for it."""

    reason: str


Outcome = Delivered | Retry | Rejected | Misconfigured | Skipped


@dataclass(frozen=True)
class Delivery:
    """One hit on its way to one connection. `value` is the whole routed hit as JSON; `settings` and `options` are checked."""

    hit: RoutedHit
    value: bytes
    settings: Any
    options: Any

    @cached_property
    def message(self) -> Message:
        """What the hit says, in one form for all dialects: destinations read this, not `event`."""
        return read_message(_decode(self.hit.event), self.hit.context, self.hit.sentAt, self.hit.receivedAt)

    @property
    def event(self) -> dict[str, Any]:
        """The client's event."""
        return self.message.event

    @property
    def context(self) -> dict[str, Any]:
        """The client's context with what was derived."""
        return self.message.context

    @property
    def name(self) -> str:
        """The event's name; "" when it is no text."""
        return self.message.name

    @property
    def time(self) -> str:
        """When it happened, ISO 8601 in UTC; never after it was received, which a wrong clock could say."""
        return self.message.time

    @property
    def time_ms(self) -> int:
        """`time` in milliseconds since 1970."""
        return self.message.time_ms

    @property
    def properties(self) -> dict[str, Any]:
        """What the event says, without its name and user."""
        return self.message.properties

    def unsupported(self) -> Skipped | None:
        """The outcome of identify, group and alias calls at a destination that takes events only; None for events."""
        kind = self.message.type
        return Skipped(f"no_{kind}_calls") if kind in ("identify", "group", "alias") else None


@dataclass(frozen=True, slots=True)
class Event:
    """What one hit becomes. Only events of equal `group` share a request.

    `time_ms` is filled in by the deliverer, where `Limits` has an age.
    """

    hit_id: str
    body: bytes
    group: Hashable = None
    time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What is sent. Values of headers never show up in logs, nor does what stands behind the `?` of `url`."""

    method: str
    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What came back: header names in lower case, `retry-after` in seconds however it was written, at most 64 KiB of the body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """The body; None when it is no JSON, no UTF-8 or nested without end."""
        try:
            return _decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


def judge(response: HttpResponse, events: Sequence[Event] = ()) -> Outcome:
    """The outcome by the status alone (contract.md, section 6), for destinations without answers per event.

    A rejected request of several events is sent again in halves, until the one is found that is at fault.
    """
    status = response.status
    if 200 <= status < 300:
        return Delivered()
    if status in (408, 425, 429) or status >= 500:
        asked = response.headers.get("retry-after", "").strip()
        return Retry(f"http_{status}", float(asked) if asked.isdigit() else None)
    if status in (401, 403, 410):
        return Misconfigured(f"the destination answers {status}; check the connection's settings")
    if 300 <= status < 400:
        # Redirects are not followed, and one that says where its address is now, or where to log in, says it to every hit.
        return Misconfigured(f"the destination answers {status}, a redirect; name the address that it leads to")
    return Rejected(f"http_{status}", f"the destination answers {status}")


def encode_json(value: Any) -> bytes:
    """JSON as msgspec writes it; `msgspec.Raw` goes in as it is."""
    return _encode(value)


def fitting_id(hit_id: str, fits: re.Pattern[str]) -> str:
    """The hitId where the whole of it `fits`, else a hash of it: 32 hex digits, the same at each attempt."""
    return hit_id if fits.fullmatch(hit_id) else hashlib.blake2b(hit_id.encode(), digest_size=16).hexdigest()


def json_list(events: Sequence[Event]) -> bytes:
    """The bodies of `events` as one JSON array."""
    return b"[" + b",".join(event.body for event in events) + b"]"


Verdict = Outcome | Sequence[Outcome]
"""One outcome for the whole request, or one per event in their order."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the destination takes: events and bytes per request, and events per second where it says so.

    `oldest_seconds` is the age up to which it takes an event. It counts at each attempt, so that neither a backlog, an outage nor
    a replay sends what the destination would drop or date wrongly: that is a dead letter, `too_old`.
    """

    events: int = 1
    request_bytes: int = 1_000_000
    per_second: float | None = None
    oldest_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Http:
    """Sent by HTTP. `request` gets at most `limits.events` events of one group, and the time in seconds since 1970."""

    event: Callable[[Delivery], Event | Skipped | Rejected]
    request: Callable[[Sequence[Event], Any, float], HttpRequest]
    verdict: Callable[[HttpResponse, Sequence[Event]], Verdict] = judge
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Files:
    """The files sink: `folder` (a path, or the address of a bucket) and `format` are read from the settings.

    `options` are those of the bucket's store: region, endpoint, credentials.
    """

    folder: Callable[[Any], str]
    format: Callable[[Any], str]
    options: Callable[[Any], Mapping[str, str]] = lambda settings: {}


@dataclass(frozen=True, slots=True)
class Postgres:
    """The PostgreSQL sink: the address of the database and the table are read from the settings."""

    dsn: Callable[[Any], str]
    table: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class ClickHouse:
    """The ClickHouse sink: address, user, password, database and table are read from the settings."""

    url: Callable[[Any], str]
    user: Callable[[Any], str]
    password: Callable[[Any], str]
    database: Callable[[Any], str]
    table: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class BigQuery:
    """The BigQuery sink: the table as `project.dataset.table`, a key or the file of one, and two addresses, from the settings."""

    table: Callable[[Any], str]
    key: Callable[[Any], str | None]
    key_file: Callable[[Any], str | None]
    url: Callable[[Any], str]
    storage_url: Callable[[Any], str]
    limits: Limits


Sink = Http | Files | Postgres | ClickHouse | BigQuery


@dataclass(frozen=True, slots=True)
class Destination:
    """A kind of destination. `name` and `aliases` are its keys in `integrations`; `sink` None: the topic is all."""

    name: str
    summary: str
    settings: type[Settings] = NoSettings
    options: type[Options] = AnyOptions
    sink: Sink | None = None
    aliases: tuple[str, ...] = ()
    documentation: str = ""
    delivery_guarantee: str = ""
