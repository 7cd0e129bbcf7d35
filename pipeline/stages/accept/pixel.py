"""Messages in the address of a picture: `GET /v1/pixel/track` as Segment has it, `GET /pixel/v1/track` as RudderStack has it.

The query is one message of the kind that the path names: `data` is its JSON, in base64 or plain; or each member has a field,
with dots for the members of an object, as in `event=Opened&properties.subject=Hello`. Sources: the documentation of both,
"Tracking Pixel API" and "Pixel API".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from pipeline.codec.percent_encoding import query_fields
from pipeline.stages.accept.records import Code, Outcome, Random, Refusal, Request

_MAX_FIELDS = 1000
MAX_DOTS = 16
"""In a name: further ones belong to the last part, since a thousand levels would be too deep to encode."""
_CONSENT = {"true": True, "false": False}

_NOT_BASE64 = (Code.INVALID_JSON, "data is the message as JSON, in base64 or percent-encoded", "data")
_TOO_MANY = (Code.INVALID_HIT, f"at most {_MAX_FIELDS} fields in one query")

AcceptBody = Callable[[bytes, Request, Random], Outcome]
"""Takes the message as the body of a POST."""


def accept_pixel(body: bytes, request: Request, random: Random, accept: AcceptBody) -> Outcome:
    """One message from the query; `accept` takes it as the body that it would be otherwise."""
    try:
        fields, _ = query_fields(request.query, _MAX_FIELDS)
    except ValueError:
        return Refusal(400, *_TOO_MANY)
    data = next((value for name, value in reversed(fields) if name == "data"), None)
    if data is None:
        message = msgspec.json.encode(_members(fields))
    elif data.lstrip().startswith("{"):
        message = data.encode()
    else:
        try:
            message = _from_base64(data)
        except (binascii.Error, ValueError):
            return Refusal(400, *_NOT_BASE64)
    return accept(message, request, random)


def _from_base64(text: str) -> bytes:
    """Of both alphabets, with or without padding; a `+` that nobody has percent-encoded is a space by now."""
    text = text.strip("= ").replace(" ", "+").replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _members(fields: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The message that the fields spell; of a name that is there twice the last one counts."""
    message: dict[str, Any] = {}
    for name, text in fields:
        *outer, last = name.split(".", MAX_DOTS)
        members = message
        for part in outer:
            inner = members.get(part)
            if not isinstance(inner, dict):
                inner = members[part] = {}
            members = inner
        value: str | bool = text
        if outer == ["integrations"]:
            value = _CONSENT.get(text, text)
        elif name == "anonymousId":
            value = text.removeprefix('"').removesuffix('"')  # AMP's pages quote their client id
        members[last] = value
    return message
