"""What a hit says, whichever dialect its sender speaks. Every destination reads a hit through `read_message`.

SegmentStream's dialect (`/track`, `/collect`, `/ds`) puts its fields beside `name` and `user` of the event. Segment's dialect
(`/v1/*`, stored by stages/accept/segment.py) has a `type`, and its fields one level deeper in `properties` or `traits`.
The shape of the event tells which one it is (`_is_segment`). A header or a mark would be missing in hits that wait in
topics, in replays and in hits that front ends write, so there is none.
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
"""The name in the stored event of each of Segment's types but track, whose event the sender names."""

RENAMED: Mapping[str, str] = {"name": "title", "user": "sender"}
"""What the intake calls otherwise: a page's own name, and a member that would hide the identity; see `stored_name`."""

_TYPES_BY_NAME = {"Viewed Page": "page", "Viewed Screen": "screen"}
_COMMON_FIELDS = frozenset(
    {
        *("name", "type", "user", "properties", "timestamp", "originalTimestamp", "receivedAt"),
        *("title", "category", "channel", "version", "projectId", "rudderId", "_metadata"),
    }
)
"""What a Segment message may hold beside its properties (Spec, "Common fields"), and what clients add."""
_decode = msgspec.json.Decoder().decode
_PAGE_FIELDS = ("url", "path", "referrer", "search", "title")
_IDS = ("userId", "anonymousId")


class Message:
    """A hit as every destination reads it; here of SegmentStream's dialect. Objects belong to the hit: do not change them.

    Parts are read when a destination asks for them: most ask for few, and not all for the context.
    """

    is_segment = False
    group_id = ""
    """Of a group call, the group."""
    previous_id = ""
    """Of an alias call, the id that the person had before."""

    def __init__(self, event: dict[str, Any], raw_context: bytes | msgspec.Raw, sent_at: str, received_at: str) -> None:
        """`raw_context` is JSON, the times are the routed hit's."""
        self.event = event
        self._raw_context = raw_context
        self._context: dict[str, Any] | None = None
        self._sent_at = sent_at
        self._received_at = received_at
        name = event.get("name")
        self.name: str = name if isinstance(name, str) else ""
        """The event's name; "" when it is no text."""

    @property
    def context(self) -> dict[str, Any]:
        """The context with what was derived, read at the first use."""
        if self._context is None:
            self._context = object_of(_decode(self._raw_context))
        return self._context

    @property
    def type(self) -> str:
        """Segment's type: track, page, screen, identify, group or alias."""
        return _TYPES_BY_NAME.get(self.name, "track")

    @property
    def time(self) -> str:
        """When it happened, ISO 8601 in UTC; never after it was received, which a wrong clock could say."""
        return min(self._sent_at, self._received_at)

    @property
    def time_ms(self) -> int:
        """`time` in ms since 1970."""
        return read_time(self.time) or 0

    @property
    def properties(self) -> dict[str, Any]:
        """What it says of the event."""
        return {key: value for key, value in self.event.items() if key not in ("name", "user")}

    @property
    def traits(self) -> dict[str, Any]:
        """What it says of the person; a group call: of the group."""
        return {key: value for key, value in self.user.items() if key not in _IDS}

    @property
    def user(self) -> dict[str, Any]:
        """The ids, and all that is known of the person."""
        return object_of(self.event.get("user"))

    @property
    def page(self) -> dict[str, Any]:
        """`url`, `title`, `referrer` and more of the page where it happened."""
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
            return self._known() | traits  # RudderStack's clients put them into the context
        return traits if self.type == "group" else {}

    @property
    def user(self) -> dict[str, Any]:
        said = self.traits if self.type == "identify" else {}
        return {**self._known(), **said, **object_of(self.event.get("user"))}

    @property
    def page(self) -> dict[str, Any]:
        page = object_of(self.context.get("page"))
        if self.type != "page":
            return page
        own = {key: self.properties.get(key) for key in _PAGE_FIELDS}
        return _present({"title": self._title()}) | page | _present(own)

    @property
    def group_id(self) -> str:  # type: ignore[override] # a constant of the other dialect
        return id_of(self.event.get("groupId"))

    @property
    def previous_id(self) -> str:  # type: ignore[override]
        return id_of(self.event.get("previousId"))

    def _title(self) -> Any:
        return self.event.get(stored_name(self.event, RENAMED["name"]))

    def _known(self) -> dict[str, Any]:
        return object_of(self.context.get("traits"))


def read_message(event: dict[str, Any], raw_context: bytes | msgspec.Raw, sent_at: str, received_at: str) -> Message:
    """Read a hit in the dialect that its event has."""
    return (_SegmentMessage if _is_segment(event) else Message)(event, raw_context, sent_at, received_at)


def object_of(value: Any) -> dict[str, Any]:
    """`value` where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def stored_name(members: Container[str], renamed: str) -> str:
    """The name under which the intake stored a renamed member: one `_` more for each that the message had itself."""
    while f"{renamed}_" in members:
        renamed += "_"
    return renamed


def _is_segment(event: Mapping[str, Any]) -> bool:
    """Is it a Segment message? SegmentStream's events may have a field `type`, too."""
    kind = event.get("type")
    if not isinstance(kind, str) or (kind != "track" and (kind not in NAMES or event.get("name") != NAMES[kind])):
        return False
    # An event "Viewed Page" with the type "page" can be SegmentStream's; then its fields stand beside the type.
    return kind not in ("track", "page") or isinstance(event.get("properties"), dict) or event.keys() <= _COMMON_FIELDS


def _time_ms(event: Mapping[str, Any], sent_at: str, received_at: str) -> int:
    """receivedAt - (sentAt - originalTimestamp), which corrects the clock of the client (Segment's Spec, "Timestamps").

    A client sends its time as `timestamp` (RudderStack's: `originalTimestamp`). Of both, `timestamp` is one that the sender chose,
    or that was corrected before; it stays as it is.
    """
    received_ms = read_time(received_at) or 0
    sent_ms = read_time(sent_at) or received_ms
    time_ms, original_ms = _read(event.get("timestamp")), _read(event.get("originalTimestamp"))
    if time_ms is None or original_ms is None:
        client_ms = time_ms if original_ms is None else original_ms
        time_ms = sent_ms if client_ms is None else received_ms - (sent_ms - client_ms)
    return max(FIRST_TIME_MS, min(time_ms, received_ms))


def _read(value: Any) -> int | None:
    if isinstance(value, str):
        return read_time(value)
    return read_time(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else None


def id_of(value: Any) -> str:
    """An id as text: senders write numbers, too. "" when there is none."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _present(members: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in members.items() if value is not None}
