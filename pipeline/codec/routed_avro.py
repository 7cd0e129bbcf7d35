"""Converts routed hits from JSON to Avro (schemas/routed_hit.avsc) and back."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from pipeline.codec.avro import Framing
from pipeline.codec.routed_hit import read_time, time_text
from schemas import read_schema

ROUTED_HIT_SCHEMA = read_schema("routed_hit.avsc")

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)
_encode = msgspec.json.Encoder().encode
_COLUMNS = frozenset(
    {
        *("hitId", "projectId", "receivedAt", "sentAt", "userId", "anonymousId"),
        *("event", "context", "integrations", "options"),
    }
)


class _Named(msgspec.Struct, gc=False):
    name: msgspec.Raw = msgspec.Raw(b"null")


_named = msgspec.json.Decoder(_Named)


def routed_to_avro(value: bytes, framing: Framing) -> bytes:
    """Return the Avro form of `value`, a routed hit as JSON from `encode_routed_hit`."""
    members = _members.decode(value)

    def text(name: str) -> str | None:
        raw = members.get(name)
        return _text.decode(raw) if raw is not None else None

    def raw_json(name: str) -> str | None:
        raw = members.get(name)
        return bytes(raw).decode() if raw is not None else None

    others = {name: raw for name, raw in members.items() if name not in _COLUMNS}
    event_name = bytes(_named.decode(members["event"]).name)
    return framing.encode(
        {
            "hit_id": text("hitId"),
            "project_id": text("projectId"),
            "received_at": read_time(text("receivedAt") or ""),
            "sent_at": read_time(text("sentAt") or ""),
            "user_id": text("userId"),
            "anonymous_id": text("anonymousId"),
            "event_name": _text.decode(event_name) if event_name.startswith(b'"') else None,
            "event": raw_json("event"),
            "context": raw_json("context"),
            "integrations": raw_json("integrations"),
            "options": raw_json("options"),
            "others": _encode(others).decode() if others else None,
        }
    )


def avro_to_routed(value: bytes, framing: Framing) -> bytes:
    """Return the JSON form. Raises ValueError if `value` is no routed hit in Avro."""
    read = framing.decode(value)
    members: dict[str, Any] = {
        "hitId": read["hit_id"],
        "projectId": read["project_id"],
        "receivedAt": time_text(_ms(read["received_at"])),
        "sentAt": time_text(_ms(read["sent_at"])),
    }
    for name, column in (("userId", "user_id"), ("anonymousId", "anonymous_id")):
        if read[column] is not None:
            members[name] = read[column]
    for name in ("event", "context", "integrations"):
        if read[name] is not None:
            members[name] = msgspec.Raw(read[name].encode())
    if read["others"] is not None:
        members |= _members.decode(read["others"])
    if read["options"] is not None:
        members["options"] = msgspec.Raw(read["options"].encode())
    return _encode(members)


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)
