"""Messages in the URL of a tracking pixel: `GET /v1/pixel/track` of Segment, `GET /pixel/v1/track` of RudderStack.

The query is one message of the type in the path. Either `data` is its JSON, in base64 or plain, or each member is a field, with
dots for nested members, as in `event=Opened&properties.subject=Hello`. Sources: Segment's "Tracking Pixel API", RudderStack's
"Pixel API".
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
"""Dots of a name that nest. Further ones belong to the last part, since a thousand levels would be too deep to encode."""
_CONSENT = {"true": True, "false": False}

_NOT_BASE64 = (Code.INVALID_JSON, "data is the message as JSON, in base64 or percent-encoded", "data")
_TOO_MANY = (Code.INVALID_HIT, f"at most {_MAX_FIELDS} fields in one query")

AcceptBody = Callable[[bytes, Request, Random], Outcome]
"""Accepts the message as the body of a POST."""


def accept_pixel(body: bytes, request: Request, random: Random, accept: AcceptBody) -> Outcome:
    """Accept one message from the query; `accept` handles it as the body of a POST."""
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
    """Decode both base64 alphabets, with or without padding. A `+` without percent-encoding arrives as a space."""
    text = text.strip("= ").replace(" ", "+").replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _members(fields: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the message of the fields; of a repeated name the last value counts."""
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
            value = text.removeprefix('"').removesuffix('"')  # AMP pages send the client id in quotes
        members[last] = value
    return message
