"""Validates and decodes a hit by the rules of contract.md, section 1, with a partial decode only.

Only what routing needs becomes Python values. The rest stays the client's bytes, without repeated keys (`unique_keys`). msgspec
does not validate UTF-8 and surrogate pairs inside raw values, so `hit_text` checks both, only where they can occur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline.codec.hit_text import DEPTH, check_text
from pipeline.codec.integrations import Integrations, parse_integrations
from pipeline.codec.unique_keys import decoded_unique_keys, unique_keys
from pipeline.errors import InvalidHit

HIT_ID_CHARACTERS = 256

_KNOWN = frozenset({"hitId", "sentAt", "userId", "anonymousId", "event", "context", "integrations"})
# The router writes these members itself.
_RESERVED = frozenset({"projectId", "door", "receivedAt", "options"})


class _PlainHit(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The common form of a hit, decoded in one pass; every other form takes the slow path."""

    event: msgspec.Raw
    context: msgspec.Raw = msgspec.Raw(b"{}")
    integrations: msgspec.Raw = msgspec.Raw(b"null")
    hitId: str | None = None
    sentAt: str | None = None


class _User(msgspec.Struct, gc=False):
    userId: str | None = None
    anonymousId: str | None = None


class _Event(msgspec.Struct, gc=False):
    name: str | None = None
    user: _User | None = None


class _Signed(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The common form of a hit as the intake reads it: in one pass, with its identity."""

    event: _Event
    context: msgspec.Raw = msgspec.Raw(b"{}")
    integrations: msgspec.Raw = msgspec.Raw(b"null")
    hitId: str | None = None
    sentAt: str | None = None
    projectId: str | None = None


class _RawUser(msgspec.Struct, gc=False):
    userId: msgspec.Raw = msgspec.Raw(b"null")
    anonymousId: msgspec.Raw = msgspec.Raw(b"null")


class _RawEvent(msgspec.Struct, gc=False):
    name: msgspec.Raw = msgspec.Raw(b"null")
    user: msgspec.Raw = msgspec.Raw(b"null")


_plain_hit = msgspec.json.Decoder(_PlainHit)
_signed = msgspec.json.Decoder(_Signed)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decode = msgspec.json.Decoder().decode
_event = msgspec.json.Decoder(_Event)
_raw_event = msgspec.json.Decoder(_RawEvent)
_raw_user = msgspec.json.Decoder(_RawUser)
_string = msgspec.json.Decoder(str)


class DecodedHit(msgspec.Struct, gc=False):
    """A valid hit. `event`, `context` (an object) and `extra` (unknown members) are the client's bytes, without repeated keys.

    `user_id` and `anonymous_id` come from the first place that has either (contract.md, section 1); `identity` is
    the user id, else the anonymous id. `sent_at` is the raw text, None if absent.
    """

    hit_id: str | None
    user_id: str | None
    anonymous_id: str | None
    identity: str
    sent_at: str | None
    event_name: str
    event: bytes
    context: bytes
    integrations: Integrations
    extra: Sequence[tuple[str, bytes]]


_NOTHING: tuple[tuple[str, bytes], ...] = ()


def decode_hit(body: bytes) -> DecodedHit:
    """Validate and decode one hit. Raises InvalidHit with the contract's code, a message and the path."""
    decoded = check_text(body)
    try:
        plain = _plain_hit.decode(body)
        event, context, hit_id = bytes(plain.event), bytes(plain.context), plain.hitId
        value = _decode(event) if decoded is None else decoded["event"]
        event_name, user_id, anonymous_id = _read_plain_event(value) or _read_event(event)
        if (
            (user_id or anonymous_id)
            and (hit_id is None or 0 < len(hit_id) <= HIT_ID_CHARACTERS)
            and context.startswith(b"{")
        ):
            event = decoded_unique_keys(event, value)
            context = decoded_unique_keys(context, _decode(context))
            integrations = parse_integrations(bytes(plain.integrations))
            return DecodedHit(
                hit_id,
                user_id,
                anonymous_id,
                user_id or anonymous_id or "",
                plain.sentAt,
                event_name,
                event,
                context,
                integrations,
                _NOTHING,
            )
    except (msgspec.DecodeError, RecursionError, InvalidHit):
        pass  # the slow path below accepts it, or raises the exact error
    return _of_members(_read_members(body))


def check_hit(body: bytes) -> tuple[str | None, str | None]:
    """Validate one hit, and return its hitId and projectId. Raises as `decode_hit`, at half its cost."""
    check_text(body)
    try:
        signed = _signed.decode(body)
        user, hit_id = signed.event.user, signed.hitId
        if (
            user is not None
            and (_text(user.userId) or _text(user.anonymousId))
            and (hit_id is None or 0 < len(hit_id) <= HIT_ID_CHARACTERS)
            and bytes(signed.context).startswith(b"{")
        ):
            parse_integrations(bytes(signed.integrations))
            return hit_id, signed.projectId
    except (msgspec.DecodeError, RecursionError, InvalidHit):
        pass  # the slow path below accepts it, or raises the exact error
    members = _read_members(body)
    project = bytes(members.get("projectId", b""))
    return _of_members(members).hit_id, _string.decode(project) if project.startswith(b'"') else None


def _of_members(members: Mapping[str, msgspec.Raw]) -> DecodedHit:
    if "event" not in members:
        raise InvalidHit("invalid_hit", "event is missing; it must be an object", "event")
    event = unique_keys(bytes(members["event"]))
    event_name, user_id, anonymous_id = _read_event(event)
    if not user_id and not anonymous_id:
        user_id = _identity(members.get("userId"))
        anonymous_id = _identity(members.get("anonymousId"))
        if not user_id and not anonymous_id and "user" in members:
            user_id, anonymous_id = _read_user(members["user"])
    identity = user_id or anonymous_id
    if not identity:
        raise InvalidHit(
            "invalid_hit", "userId and anonymousId are missing; put one of them into event.user", "event.user"
        )
    context = bytes(members.get("context", b"null"))
    if context == b"null":
        context = b"{}"
    elif not context.startswith(b"{"):
        raise InvalidHit("invalid_hit", "context must be an object", "context")
    integrations = parse_integrations(bytes(members.get("integrations", b"null")))
    return DecodedHit(
        _hit_id(members.get("hitId")),
        user_id,
        anonymous_id,
        identity,
        _sent_at(members.get("sentAt")),
        event_name,
        event,
        unique_keys(context),
        integrations,
        [
            (name, unique_keys(bytes(value)))
            for name, value in members.items()
            if name not in _KNOWN and name not in _RESERVED
        ]
        if not members.keys() <= _KNOWN
        else [],
    )


def _read_members(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _members.decode(body)
    except msgspec.ValidationError:
        raise InvalidHit("invalid_json", "a hit must be a JSON object") from None
    except msgspec.DecodeError as error:
        raise InvalidHit("invalid_json", str(error)) from None
    except RecursionError:
        raise InvalidHit("invalid_json", f"nested deeper than {DEPTH}") from None


def _read_plain_event(event: Any) -> tuple[str, str | None, str | None] | None:
    """As `_read_event`, from the decoded value; None if it is not of the common form."""
    if type(event) is dict:
        name, user = event.get("name", ""), event.get("user")
        if type(user) is dict and type(name) is str:
            user_id, anonymous_id = user.get("userId"), user.get("anonymousId")
            if (user_id is None or type(user_id) is str) and (anonymous_id is None or type(anonymous_id) is str):
                return name, _text(user_id), _text(anonymous_id)
    return None


def _read_event(raw: bytes) -> tuple[str, str | None, str | None]:
    try:
        event = _event.decode(raw)
    except msgspec.ValidationError:
        return _read_unusual_event(raw)
    user = event.user
    if user is None:
        return event.name or "", None, None
    return event.name or "", _text(user.userId), _text(user.anonymousId)


def _read_unusual_event(raw: bytes) -> tuple[str, str | None, str | None]:
    try:
        event = _raw_event.decode(raw)
    except msgspec.ValidationError:
        raise InvalidHit("invalid_hit", "event must be an object", "event") from None
    name = _string.decode(event.name) if bytes(event.name).startswith(b'"') else ""
    return name, *(_read_user(event.user) if bytes(event.user).startswith(b"{") else (None, None))


def _read_user(raw: msgspec.Raw) -> tuple[str | None, str | None]:
    if not bytes(raw).startswith(b"{"):
        return _identity(raw), None
    user = _raw_user.decode(raw)
    return _identity(user.userId), _identity(user.anonymousId)


def _text(value: str | None) -> str | None:
    return None if value is None or not value or value.isspace() else value


def _identity(raw: msgspec.Raw | None) -> str | None:
    """Return an id as text: a number as its digits; None if absent, null, empty or blank."""
    if raw is None:
        return None
    text = bytes(raw)
    if text.startswith(b'"'):
        return _text(_string.decode(text))
    return text.decode() if text[:1].isdigit() or text.startswith(b"-") else None


def _hit_id(raw: msgspec.Raw | None) -> str | None:
    if raw is None:
        return None
    text = bytes(raw)
    if text.startswith(b'"'):
        hit_id = _string.decode(text)
        if 0 < len(hit_id) <= HIT_ID_CHARACTERS:
            return hit_id
    elif text == b"null":
        return None
    elif (text[:1].isdigit() or text.startswith(b"-")) and len(text) <= HIT_ID_CHARACTERS:
        return text.decode()
    raise InvalidHit(
        "invalid_hit", f"hitId must be a string of 1 to {HIT_ID_CHARACTERS} characters or a number", "hitId"
    )


def _sent_at(raw: msgspec.Raw | None) -> str | None:
    if raw is None:
        return None
    text = bytes(raw)
    if text == b"null":
        return None
    return _string.decode(text) if text.startswith(b'"') else text.decode()
