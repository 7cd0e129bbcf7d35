"""Reads the content of a hit in either dialect. Every destination reads hits through `read_message`.

SegmentStream's dialect (`/track`, `/collect`, `/ds`) has its fields beside `name` and `user` of the event. Segment's dialect
(`/v1/*`, stored by stages/accept/segment.py) has a `type`, and its fields one level deeper, in `properties` or `traits`.
The shape of the event determines the dialect (`_is_segment`). A header or marker cannot do so: older hits on the topics, replayed
hits, and hits that front ends write to Kafka would not have it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import msgspec

from pipeline.codec.routed_hit import FIRST_TIME_MS, read_time, time_text

NAMES: Mapping[str, str] = {
    "page": "Viewed Page",
    "screen": "Viewed Screen",
    "identify": "Identify",
    "group": "Group",
    "alias": "Alias",
}
"""The event name that the intake stores for each of Segment's types, except for track, which has its own."""

RENAMED: Mapping[str, str] = {"name": "title", "user": "sender"}
"""Members that the intake renames: the title of a page, and a member that would hide the identity; see `stored_name`."""

_TYPES_BY_NAME = {"Viewed Page": "page", "Viewed Screen": "screen"}
_COMMON_FIELDS = frozenset(
    {
        *("name", "type", "user", "properties", "timestamp", "originalTimestamp", "receivedAt"),
        *("title", "category", "channel", "version", "projectId", "rudderId", "_metadata"),
    }
)
"""Members of a Segment message beside its properties (Spec, "Common fields"), and members that clients add."""
_decode = msgspec.json.Decoder().decode
_PAGE_FIELDS = ("url", "path", "referrer", "search", "title")
_IDS = ("userId", "anonymousId")


class Message:
    """A hit as every destination reads it; this class reads SegmentStream's dialect. Do not change the returned objects.

    Parts are decoded on access, because most destinations use few, and not all use the context.
    """

    is_segment = False
    group_id = ""
    """The group of a group call."""
    previous_id = ""
    """The previous id of the person, in an alias call."""

    def __init__(self, event: dict[str, Any], raw_context: bytes | msgspec.Raw, sent_at: str, received_at: str) -> None:
        """Take the decoded event, the context as JSON, and the times of the routed hit."""
        self.event = event
        self._raw_context = raw_context
        self._context: dict[str, Any] | None = None
        self._sent_at = sent_at
        self._received_at = received_at
        name = event.get("name")
        self.name: str = name if isinstance(name, str) else ""
        """The name of the event; "" if it is not text."""

    @property
    def context(self) -> dict[str, Any]:
        """The context with its derived members, decoded at the first access."""
        if self._context is None:
            self._context = object_of(_decode(self._raw_context))
        return self._context

    @property
    def type(self) -> str:
        """Segment's type: track, page, screen, identify, group or alias."""
        return _TYPES_BY_NAME.get(self.name, "track")

    @property
    def time(self) -> str:
        """Time of the event, ISO 8601 in UTC. A wrong client clock cannot make it later than `receivedAt`."""
        return min(self._sent_at, self._received_at)

    @property
    def time_ms(self) -> int:
        """`time` in Unix milliseconds."""
        return read_time(self.time) or 0

    @property
    def properties(self) -> dict[str, Any]:
        """The properties of the event."""
        return {key: value for key, value in self.event.items() if key not in ("name", "user")}

    @property
    def traits(self) -> dict[str, Any]:
        """The traits of the person; in a group call those of the group."""
        return {key: value for key, value in self.user.items() if key not in _IDS}

    @property
    def user(self) -> dict[str, Any]:
        """The ids and all known traits of the person."""
        return object_of(self.event.get("user"))

    @property
    def page(self) -> dict[str, Any]:
        """`url`, `title`, `referrer` and other members of the page of the event."""
        return object_of(self.context.get("page")) | _present(object_of(self.event.get("page")))


class _SegmentMessage(Message):
    is_segment = True

    @property
    def type(self) -> str:
        kind: str = self.event["type"]
        return kind

    @property
    def time(self) -> str:
        return time_text(_time_ms(self.event, self._sent_at, self._received_at))

    @property
    def properties(self) -> dict[str, Any]:
        properties = object_of(self.event.get("properties"))
        if self.type not in ("page", "screen"):
            return properties
        return _present({"name": self._title(), "category": self.event.get("category")}) | properties

    @property
    def traits(self) -> dict[str, Any]:
        traits = object_of(self.event.get("traits"))
        if self.type == "identify":
            return self._context_traits() | traits  # RudderStack's clients put traits into the context
        return traits if self.type == "group" else {}

    @property
    def user(self) -> dict[str, Any]:
        traits = self.traits if self.type == "identify" else {}
        return {**self._context_traits(), **traits, **object_of(self.event.get("user"))}

    @property
    def page(self) -> dict[str, Any]:
        page = object_of(self.context.get("page"))
        if self.type != "page":
            return page
        own = {key: self.properties.get(key) for key in _PAGE_FIELDS}
        return _present({"title": self._title()}) | page | _present(own)

    @property
    def group_id(self) -> str:  # type: ignore[override] # a constant in the other dialect
        return id_of(self.event.get("groupId"))

    @property
    def previous_id(self) -> str:  # type: ignore[override]
        return id_of(self.event.get("previousId"))

    def _title(self) -> Any:
        return self.event.get(stored_name(self.event, RENAMED["name"]))

    def _context_traits(self) -> dict[str, Any]:
        return object_of(self.context.get("traits"))


def read_message(event: dict[str, Any], raw_context: bytes | msgspec.Raw, sent_at: str, received_at: str) -> Message:
    """Return the message of a hit, in the dialect of its event."""
    return (_SegmentMessage if _is_segment(event) else Message)(event, raw_context, sent_at, received_at)


def object_of(value: Any) -> dict[str, Any]:
    """Return `value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def stored_name(members: Container[str], renamed: str) -> str:
    """Return the name of a renamed member in the stored event: `renamed`, plus one `_` for each such name that the message used itself."""
    while f"{renamed}_" in members:
        renamed += "_"
    return renamed


def _is_segment(event: Mapping[str, Any]) -> bool:
    """Return whether it is a Segment message. SegmentStream's events may also have a field `type`."""
    kind = event.get("type")
    if not isinstance(kind, str) or (kind != "track" and (kind not in NAMES or event.get("name") != NAMES[kind])):
        return False
    # "Viewed Page" with the type "page" may be SegmentStream's dialect; then its fields are beside the type.
    return kind not in ("track", "page") or isinstance(event.get("properties"), dict) or event.keys() <= _COMMON_FIELDS


def _time_ms(event: Mapping[str, Any], sent_at: str, received_at: str) -> int:
    """Return receivedAt - (sentAt - originalTimestamp), which corrects the clock of the client (Segment's Spec, "Timestamps").

    A client sends its time as `timestamp`; RudderStack's clients send `originalTimestamp`. If a message has both, the sender chose
    `timestamp`, or it is corrected already; then it is used unchanged.
    """
    received_ms = read_time(received_at) or 0
    sent_ms = read_time(sent_at) or received_ms
    time_ms, original_ms = _time_of(event.get("timestamp")), _time_of(event.get("originalTimestamp"))
    if time_ms is None or original_ms is None:
        client_ms = time_ms if original_ms is None else original_ms
        time_ms = sent_ms if client_ms is None else received_ms - (sent_ms - client_ms)
    return max(FIRST_TIME_MS, min(time_ms, received_ms))


def _time_of(value: Any) -> int | None:
    if isinstance(value, str):
        return read_time(value)
    return read_time(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else None


def id_of(value: Any) -> str:
    """Return an id as text, since senders also write numbers; "" if there is none."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _present(members: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in members.items() if value is not None}
