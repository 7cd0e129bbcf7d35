"""Converts a routed hit to the row that every SQL sink stores."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from pipeline.destination import RoutedHit


class _EventName(msgspec.Struct, gc=False):
    name: msgspec.Raw = msgspec.Raw(b"null")


_PUBLIC_PREFIX, _SECRET_PREFIX = "public/", "secret/"
_event_name_decoder = msgspec.json.Decoder(_EventName)
_string_decoder = msgspec.json.Decoder(str)


class Row(NamedTuple):
    """Values in the order of the sinks' columns. Times are ISO 8601 text, and JSON values are JSON text."""

    project_id: str
    hit_id: str
    received_at: str
    sent_at: str
    user_id: str | None
    anonymous_id: str | None
    event_name: str | None
    event: str
    context: str
    integrations: str | None
    options: str | None


def row_of(hit: RoutedHit) -> Row:
    """Return the hit as a row."""
    name = bytes(_event_name_decoder.decode(hit.event).name)
    return Row(
        hit.projectId,
        hit.hitId,
        hit.receivedAt,
        hit.sentAt,
        hit.userId,
        hit.anonymousId,
        _string_decoder.decode(name) if name.startswith(b'"') else None,
        bytes(hit.event).decode(),
        bytes(hit.context).decode(),
        _json_text(hit.integrations),
        _json_text(hit.options),
    )


def keyed_row_of(hit: RoutedHit) -> Row:
    """Return the hit as a row of a table with the key (project_id, hit_id).

    The id of a public hit gets the prefix `public/`. Strangers can know or guess hitIds, and must neither occupy nor change the
    row of a server's hit. An id of a server that begins with one of the prefixes gets `secret/`, so the keys of two hits differ.
    """
    row = row_of(hit)
    if hit.is_public:
        return row._replace(hit_id=f"{_PUBLIC_PREFIX}{hit.hitId}")
    if hit.hitId.startswith((_PUBLIC_PREFIX, _SECRET_PREFIX)):
        return row._replace(hit_id=f"{_SECRET_PREFIX}{hit.hitId}")
    return row


def _json_text(raw: msgspec.Raw) -> str | None:
    text = bytes(raw)
    return None if text == b"null" else text.decode()
