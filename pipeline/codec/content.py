"""What a hit says, apart from how and when it was sent: are two hits with one hitId the same hit? (contract.md, section 1)

The content is the hit's identity, `event`, `context`, `integrations` and every member that we don't know, as the client wrote them.
It is not `sentAt`, which a client sets anew when it sends again, nor `projectId`, `door`, `receivedAt` and `options`, which the router
writes itself, nor anything of the request: its time, address, user agent, endpoint and other headers. `context.ip` and
`context.userAgent` are the client's word about the hit, so they do count. Members are compared as bytes: a sender that writes the
same JSON with other spaces, or the members of an object in another order, has sent other content. Of a key that stands twice only the
last value counts, as in what leaves the router.
"""

from __future__ import annotations

from collections.abc import Sequence

import google_crc32c

from pipeline.codec.hit import DecodedHit

_MARKS = 0xFFFF


def content_of(hit: DecodedHit) -> bytes:
    """Equal for two hits when their content is."""
    parts: Sequence[bytes] = (
        hit.event,
        hit.context,
        hit.integrations.raw or b"",
        hit.identity.encode(),  # which may stand outside the event
    )
    if hit.extra:
        parts = [*parts, *(part for name, value in sorted(hit.extra) for part in (name.encode(), value))]
    return b"\0".join(parts)


def content_mark(hit: DecodedHit) -> int:
    """1 to 65,535 from the CRC32C of the content: one in 65,535 contents is taken for another, at 2 bytes per id."""
    checksum: int = google_crc32c.value(content_of(hit))
    return checksum % _MARKS + 1
