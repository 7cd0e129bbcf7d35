"""`/ds/{data_stream_id}`: accepts any request as one hit named "Data Stream" that keeps the raw body.

    {"hitId": …, "event": {"name": "Data Stream", "user": {…}, "payload": {"query": …, "body": …, "raw": …}}}

- `query` holds the fields of the query, absent if there are none.
- `body` is the JSON value or the fields of a form, absent for anything else.
- `raw` is the body's text, or `rawBase64` if it is not UTF-8.
- `rawQuery` is the query if it has no fields, more than 1,000, or percent-encoded bytes that are not UTF-8. Such bytes are
  decoded as windows-1252, also in a form.

Identity and hitId are read from the query or the top level of the body, under the names that a hit uses. Without an identity
the hitId is the anonymousId.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from pipeline.codec.hit import HIT_ID_CHARACTERS, check_hit
from pipeline.codec.percent_encoding import query_fields
from pipeline.codec.raw_record import GENERATED
from pipeline.errors import InvalidHit
from pipeline.stages.accept.hit import media_type
from pipeline.stages.accept.records import Outcome, Random, Request, record_of, refusal_of, uuid7

_FORM = "application/x-www-form-urlencoded"
_MAX_FIELDS = 1000


def accept_data_stream(body: bytes, request: Request, random: Random) -> Outcome:
    """Return one hit from any body; refused only if it is too large for a hit."""
    payload: dict[str, Any] = {}
    query, is_utf8 = _fields(request.query)
    if query:
        payload["query"] = query
    if request.query and not (query and is_utf8):
        payload["rawQuery"] = request.query
    parsed, members = _read(body, media_type(request.content_type))
    if body:
        try:
            payload["raw"] = body.decode()
        except UnicodeDecodeError:
            payload["rawBase64"] = base64.b64encode(body).decode()
    own_id = uuid7(request.received_at_ms, random(10))
    named = members | query
    # If the parsed body is too deep, too long or has too many values, only the raw body is kept.
    for candidate in ([payload | {"body": parsed}] if parsed is not None else []) + [payload]:
        value, hit_id, generated = _hit(candidate, named, own_id)
        try:
            check_hit(value)
        except InvalidHit as error:
            refused = error
            continue
        record = record_of(value, hit_id, request, request.sender, random)
        if generated:
            record.headers.append((GENERATED, ",".join(generated).encode()))
        return record
    return refusal_of(refused)


def _hit(payload: Mapping[str, Any], named: Mapping[str, Any], own_id: str) -> tuple[bytes, str, list[str]]:
    generated = []
    hit_id = _name(named.get("hitId"))
    if hit_id is None:
        hit_id = own_id
        generated.append("hitId")
    user = {name: text for name in ("userId", "anonymousId") if (text := _name(named.get(name))) is not None}
    if not user:
        user["anonymousId"] = hit_id
        generated.append("anonymousId")
    hit = {"hitId": hit_id, "event": {"name": "Data Stream", "user": user, "payload": payload}}
    return msgspec.json.encode(hit), hit_id, generated


def _name(value: object) -> str | None:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text if text.strip() and len(text) <= HIT_ID_CHARACTERS else None


def _fields(text: str) -> tuple[dict[str, Any], bool]:
    """Return the fields of a query or form, repeated ones as a list, and whether all bytes were UTF-8."""
    fields: dict[str, Any] = {}
    try:
        pairs, is_utf8 = query_fields(text, _MAX_FIELDS)
    except ValueError:
        return {}, True
    for name, value in pairs:
        if name in fields:
            before = fields[name]
            fields[name] = [*before, value] if isinstance(before, list) else [before, value]
        else:
            fields[name] = value
    return fields, is_utf8


def _read(body: bytes, kind: str) -> tuple[Any, dict[str, Any]]:
    """Return the parsed body for the payload (None: keep only its text), and its top-level members."""
    try:
        if kind == _FORM:
            fields, _ = _fields(body.decode())
            return fields or None, fields
        if body.lstrip()[:1] in (b"{", b"["):
            value = msgspec.json.decode(body)
            return msgspec.Raw(body), value if isinstance(value, dict) else {}
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        pass
    return None, {}
