"""What the URL of a request says: its plain path."""

from __future__ import annotations

import re

_SLASHES = re.compile(rb"/{2,}")


def plain_path(path: bytes) -> bytes:
    """Return `path` without doubled slashes and without one at its end: clients join it to a URL that may end in a slash."""
    path = _SLASHES.sub(b"/", path)
    return path[:-1] if path.endswith(b"/") and len(path) > 1 else path
