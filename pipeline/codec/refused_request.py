"""A refused request, from the admin endpoint of an intake to `hitrouter tail --refused`."""

from __future__ import annotations

import msgspec


class RefusedRequest(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One refused request. `path` is that of the request, `place` that within its document, where the hit is wrong.

    `number` grows, also over restarts. `missed` are requests with the same code, directly before this one, that were not kept.
    `project` is "" where it is not known, `body` where nobody asked for bodies.
    """

    number: int
    time_ms: int
    status: int
    code: str
    method: str = ""
    path: str = ""
    project: str = ""
    place: str = ""
    message: str = ""
    missed: int = 0
    body: str = ""
