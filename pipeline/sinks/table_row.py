"""A routed hit as a row of a table: what every SQL sink stores."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from pipeline.destination import RoutedHit


class _Name(msgspec.Struct, gc=False):
    name: msgspec.Raw = msgspec.Raw(b"null")


_PUBLIC, _SECRET = "public/", "secret/"
_name = msgspec.json.Decoder(_Name)
_string = msgspec.json.Decoder(str)


class Row(NamedTuple):
    """Values in the order of the sinks' columns; JSON as text."""

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
    """The hit as a row."""
    name = bytes(_name.decode(hit.event).name)
    return Row(
        hit.projectId,
        hit.hitId,
        hit.receivedAt,
        hit.sentAt,
        hit.userId,
        hit.anonymousId,
        _string.decode(name) if name.startswith(b'"') else None,
        bytes(hit.event).decode(),
        bytes(hit.context).decode(),
        _json(hit.integrations),
        _json(hit.options),
    )


def keyed_row_of(hit: RoutedHit) -> Row:
    """The hit as a row of a table whose key is (project_id, hit_id).

    The id of a public hit stands behind `public/`: strangers know or guess hitIds, and must neither take the row of a server's
    hit nor change it. A server's own id that begins so stands behind `secret/`, so no two hits have one key.
    """
    row = row_of(hit)
    if hit.is_public:
        return row._replace(hit_id=f"{_PUBLIC}{hit.hitId}")
    return row._replace(hit_id=f"{_SECRET}{hit.hitId}") if hit.hitId.startswith((_PUBLIC, _SECRET)) else row


def _json(raw: msgspec.Raw) -> str | None:
    text = bytes(raw)
    return None if text == b"null" else text.decode()
