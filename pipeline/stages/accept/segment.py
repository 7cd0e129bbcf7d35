"""Segment-compatible calls: `/v1/batch` and one path per type of message.

A message becomes a hit: its messageId the hitId, its type and fields the event. So routing rules, schemas and analysts see one
shape. `context` and `integrations` stay unchanged; every other member goes into the event, as the client's own bytes. Source:
Segment's Spec, "Common fields", and its HTTP Tracking API.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import lru_cache

import msgspec

from pipeline.codec.hit import check_hit
from pipeline.destination.message import NAMES, RENAMED
from pipeline.errors import InvalidHit
from pipeline.stages.accept.records import (
    Accepted,
    Code,
    Outcome,
    Random,
    Refusal,
    Request,
    Sender,
    bytes_of,
    headers_of,
    record_of,
    refusal_of,
    refused_record,
)
from pipeline.stages.accept.sender_in_body import write_key_in

BATCH_BYTES = 524_288
"""Segment's clients send batches of up to 500 KB. Each message in a batch has the size limit of a hit."""

MESSAGES = 2_500
"""Most messages of one batch, as in Segment's HTTP Tracking API. A hundred bytes of gzip could hold 250,000 messages."""
STEP_MESSAGES = 50
"""Messages per step: half a millisecond of work."""
RECORD_BYTES = 3 * BATCH_BYTES
"""Most bytes of the keys, values and headers of all records of a batch. Each record repeats the batch's shared members and headers.

Segment's largest batch, 2,500 messages in 500 KB, becomes 1.3 MB with the headers of a browser.
"""

SenderOf = Callable[[str, str], Sender | Refusal | None]
"""From a write key and the page's origin to the sender; None if the key is unknown."""

_NAMES = {kind: msgspec.json.encode(name) for kind, name in NAMES.items()}
_OUTSIDE = frozenset(
    {
        "messageId",
        "userId",
        "anonymousId",
        "context",
        "integrations",
        "sentAt",
        "event",
        "type",
        "writeKey",
        "name",
        "user",
    }
)
_BEFORE = (("messageId", b'"hitId":'), ("sentAt", b'"sentAt":'))
_USER = (("userId", b'"userId":'), ("anonymousId", b'"anonymousId":'))
_AFTER = (("context", b',"context":'), ("integrations", b',"integrations":'))
_REMEMBERED_CHARACTERS = 100
"""Longest cached member name, in characters; clients use few names, and short ones."""
_NO_KEY = (Code.UNAUTHORIZED, "give the write key as the user name of Basic authentication, or as writeKey in the body")
_UNKNOWN_KEY = (Code.UNAUTHORIZED, "no project has this write key; send one of the project's tokens or public_keys")
_TOO_LARGE = (
    f"a batch becomes at most {RECORD_BYTES} bytes of hits, each with the batch's context, integrations and headers; "
    "send fewer messages at once, or give a context only to the messages that need it"
)
_NO_TEXT = (Code.INVALID_HIT, "writeKey must be a string", "writeKey")

Members = Mapping[str, msgspec.Raw]


_NULL = msgspec.Raw(b"null")


class _Batch(msgspec.Struct, gc=False):
    batch: list[msgspec.Raw]
    writeKey: str | None = None
    sentAt: msgspec.Raw = _NULL
    context: msgspec.Raw = _NULL
    integrations: msgspec.Raw = _NULL


_batch = msgspec.json.Decoder(_Batch)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)
_optional_text = msgspec.json.Decoder(str | None)


def accept_message(body: bytes, request: Request, random: Random, sender_of: SenderOf, kind: str) -> Outcome:
    """Accept one message; its type `kind` comes from the path."""
    try:
        members = _members.decode(_utf8(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refusal(400, Code.INVALID_JSON, str(error))
    try:
        write_key = _optional_text.decode(members.get("writeKey", _NULL))
    except msgspec.DecodeError:
        return Refusal(400, *_NO_TEXT)
    sender = _sender(request, write_key, sender_of)
    if isinstance(sender, Refusal):
        return sender
    try:
        return _record(members, {}, kind, request, sender, random)
    except InvalidHit as error:
        return refusal_of(error, sender.project)


def accept_batch(body: bytes, request: Request, random: Random, sender_of: SenderOf) -> Outcome:
    """Accept a batch of messages. An invalid message becomes a dead letter with its reason; the others are accepted."""
    steps = batch_steps(body, request, random, sender_of)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def batch_steps(body: bytes, request: Request, random: Random, sender_of: SenderOf) -> Generator[None, None, Outcome]:
    """As `accept_batch`, but yield after each STEP_MESSAGES, so that other requests can run."""
    if not request.sender.project and (write_key := write_key_in(body)) is not None:
        # Refuse an unknown key before decoding: a hundred bytes of gzip could hold 250,000 messages.
        refused = _sender(request, write_key, sender_of)
        if isinstance(refused, Refusal):
            return refused
    try:
        batch = _batch.decode(_utf8(body))
    except msgspec.ValidationError as error:
        if "$.writeKey" in str(error):
            return Refusal(400, *_NO_TEXT)
        return Refusal(400, Code.INVALID_HIT, "a batch must be an object with a list of messages in batch", "batch")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refusal(400, Code.INVALID_JSON, str(error))
    sender = _sender(request, batch.writeKey, sender_of)
    if isinstance(sender, Refusal):
        return sender
    project = sender.project
    if len(batch.batch) > MESSAGES:
        too_many = f"at most {MESSAGES} messages in one batch; send the rest in another one"
        return Refusal(400, Code.TOO_LARGE, too_many, "batch", project=project)
    shared = {
        name: value
        for name, value in (("sentAt", batch.sentAt), ("context", batch.context), ("integrations", batch.integrations))
        if bytes(value) != b"null"
    }
    records: list[Accepted] = []
    left = RECORD_BYTES
    header_bytes = bytes_of(headers_of(request, sender))
    for number, raw in enumerate(batch.batch):
        if number and not number % STEP_MESSAGES:
            yield
        try:
            try:
                members = _members.decode(raw)
            except msgspec.DecodeError:
                raise InvalidHit("invalid_json", "a message must be an object") from None
            records.append(_record(members, shared, _kind(members), request, sender, random))
        except InvalidHit as error:
            records.append(refused_record(bytes(raw), error, request, sender, random))
            left -= bytes_of(records[-1].headers[-1:])
        record = records[-1]
        left -= len(record.key) + len(record.value) + header_bytes
        if left < 0:
            path = "context" if "context" in shared else "batch"
            return Refusal(400, Code.TOO_LARGE, _TOO_LARGE, path, project=project)
    return records


def _sender(request: Request, write_key: str | None, sender_of: SenderOf) -> Sender | Refusal:
    if request.sender.project:
        return request.sender
    if not write_key:
        return Refusal(401, *_NO_KEY)
    return sender_of(write_key, request.origin) or Refusal(401, *_UNKNOWN_KEY)


def _utf8(body: bytes) -> bytes:
    """Return `body`, checked for UTF-8, since msgspec does not validate raw values."""
    if not body.isascii():
        body.decode()
    return body


def _kind(members: Members) -> str:
    try:
        return _text.decode(members.get("type", _NULL))
    except msgspec.DecodeError:
        raise InvalidHit("invalid_hit", "type must be a string such as track or page", "type") from None


def _record(members: Members, shared: Members, kind: str, request: Request, sender: Sender, random: Random) -> Accepted:
    body = _hit(members, shared, kind)
    hit_id, _ = check_hit(body)
    return record_of(body, hit_id, request, sender, random)


def _hit(members: Members, shared: Members, kind: str) -> bytes:
    """Return the hit, joined from the client's own bytes: `join` takes `msgspec.Raw` without a copy."""
    parts: list[bytes | msgspec.Raw] = []
    for name, key in _BEFORE:
        value = members.get(name) or shared.get(name)
        if value is not None:
            parts += (key, value, b",")
    parts += (b'"event":{"name":', _name(members, kind), b',"type":"', kind.encode(), b'","user":{')
    comma = b""
    for name, key in _USER:
        if name in members:
            parts += (comma, key, members[name])
            comma = b","
    parts.append(b"}")
    for name, value in members.items():
        if name not in _OUTSIDE:
            parts += (_key(name), value)
    for name, renamed in RENAMED.items():
        if name in members:
            while renamed in members:
                renamed += "_"
            parts += (_key(renamed), members[name])
    parts.append(b"}")
    for name, key in _AFTER:
        value = members.get(name) or shared.get(name)
        if value is not None:
            parts += (key, value)
    return b"{" + b"".join(parts) + b"}"


def _key(name: str) -> bytes:
    """Return a comma, the JSON name and a colon, for a further member of the event."""
    return _remembered_key(name) if len(name) <= _REMEMBERED_CHARACTERS else _make_key(name)


def _make_key(name: str) -> bytes:
    return b"," + msgspec.json.encode(name) + b":"


_remembered_key = lru_cache(4096)(_make_key)


def _name(members: Members, kind: str) -> bytes:
    if kind == "track":
        name = bytes(members.get("event", b""))
        if not name.startswith(b'"'):
            raise InvalidHit("invalid_hit", "a track message must have a string in event", "event")
        return name
    if kind not in _NAMES:
        known = ", ".join(["track", *_NAMES])
        raise InvalidHit("invalid_hit", f"unknown type {kind[:40]!r}; the known types are {known}", "type")
    return _NAMES[kind]
