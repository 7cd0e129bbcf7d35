"""A refused request, as an intake's admin endpoint sends it to `hitrouter tail --refused`."""

from __future__ import annotations

import msgspec


class RefusedRequest(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One refused request. `path` is that of the URL, `place` the path of the error within the hit.

    `number` increases, also across restarts. `missed` counts requests with the same code directly before this one that were not
    kept. `project` is "" if unknown, `body` is "" unless bodies were requested.
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
