"""Reads a request's URL: its normalised path, and the write key that some clients put into it."""

from __future__ import annotations

import re
from urllib.parse import unquote

from pipeline.codec.percent_encoding import unquoted

_SLASHES = re.compile(rb"/{2,}")
_SETTINGS = re.compile(rb"/v1/projects/([^/]+)/settings")
_WRITE_KEY = b"writeKey="


def plain_path(path: bytes) -> bytes:
    """Return `path` without repeated or trailing slashes. Clients append paths to a base URL that may end in a slash."""
    path = _SLASHES.sub(b"/", path)
    return path[:-1] if path.endswith(b"/") and len(path) > 1 else path


def last_part(path: bytes, query: bytes) -> str:
    """Return the key of `/ds/{key}`."""
    return path.rpartition(b"/")[2].decode("latin-1")


def key_of_settings(path: bytes, query: bytes = b"") -> str:
    """Return the key of `/v1/projects/{key}/settings`; "" for any other path."""
    found = _SETTINGS.fullmatch(path)
    return unquote(found[1].decode("latin-1")) if found else ""


def write_key(path: bytes, query: bytes) -> str:
    """Return the last `writeKey` of the query; "" if there is none."""
    found = [part for part in query.split(b"&") if part.startswith(_WRITE_KEY)]
    return unquoted(found[-1].removeprefix(_WRITE_KEY).decode("latin-1")) if found else ""
