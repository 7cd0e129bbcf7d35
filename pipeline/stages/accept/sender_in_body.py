"""Reads only the project or key in a body, so that a request that must wait or is refused costs little."""

from __future__ import annotations

from typing import Any

import msgspec


class _ProjectId(msgspec.Struct, gc=False):
    projectId: str | None = None


class _WriteKey(msgspec.Struct, gc=False):
    writeKey: str | None = None


_project_id = msgspec.json.Decoder(_ProjectId)
_write_key = msgspec.json.Decoder(_WriteKey)


def project_id_in(body: bytes) -> str | None:
    """Return the projectId of a hit; None if it is missing or the body is invalid, which the later validation reports."""
    found = _read(_project_id, body)
    return None if found is None else found.projectId


def write_key_in(body: bytes) -> str | None:
    """As `project_id_in`, for the writeKey of messages."""
    found = _read(_write_key, body)
    return None if found is None else found.writeKey


def _read(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
