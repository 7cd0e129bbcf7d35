"""The content of a hit, to decide whether two hits with the same hitId are equal (contract.md, section 1).

The content is the hit's identity, `event`, `context` (with `ip` and `userAgent`), `integrations` and every unknown member, as the
client wrote them. Not part of it are:

- `sentAt`, which clients set anew on each retry;
- `projectId`, `door`, `receivedAt` and `options`, which the router writes itself;
- the request: its time, address, user agent, endpoint and other headers.

Members are compared as bytes, so other white space or another order of keys is other content. Of a repeated key only the last
value counts, as in the routed hit.
"""

from __future__ import annotations

from collections.abc import Sequence

import google_crc32c

from pipeline.codec.hit import DecodedHit

_MARKS = 0xFFFF


def content_of(hit: DecodedHit) -> bytes:
    """Return the content as bytes: equal for hits with equal content."""
    parts: Sequence[bytes] = (
        hit.event,
        hit.context,
        hit.integrations.raw or b"",
        hit.identity.encode(),  # the identity may be given outside the event
    )
    if hit.extra:
        parts = [*parts, *(part for name, value in sorted(hit.extra) for part in (name.encode(), value))]
    return b"\0".join(parts)


def content_mark(hit: DecodedHit) -> int:
    """Return 1 to 65,535, from the CRC32C of the content. Two bytes per id; different contents collide once in 65,535."""
    checksum: int = google_crc32c.value(content_of(hit))
    return checksum % _MARKS + 1
