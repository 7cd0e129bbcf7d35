"""Decides which web pages may send hits of a project by its public doors (`projects.*.collect`)."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.codec.printable import shorten
from pipeline.stages.accept.records import Code, Refusal, Sender

_ANY_SUBDOMAIN = "://*."
_EVERY = "*"
_SHOWN_CHARACTERS = 100


class Origins:
    """A configured list of origins: `https://shop.example`, `https://*.shop.example`, or `*`.

    `*.` matches one or more labels of a host name. Origins are compared in lower case, as browsers send them.
    """

    def __init__(self, listed: Iterable[str]) -> None:
        entries = {entry.lower() for entry in listed}
        self.allow_all = _EVERY in entries
        self._exact = frozenset(entry for entry in entries if _ANY_SUBDOMAIN not in entry)
        ends = (entry.split(_ANY_SUBDOMAIN) for entry in entries if _ANY_SUBDOMAIN in entry)
        self._ends = tuple((f"{scheme}://", f".{end}") for scheme, end in ends)

    def allow(self, origin: str) -> bool:
        """Return whether a page of `origin` may send; "" is a request without the header Origin."""
        if self.allow_all or origin in self._exact:
            return True
        origin = origin.lower()
        return origin in self._exact or any(
            origin.startswith(start) and origin.endswith(end) and len(origin) > len(start) + len(end)
            for start, end in self._ends
        )


class CollectRules:
    """The configuration of the public doors of one project. `enabled` applies only to /collect."""

    def __init__(self, project: str, enabled: bool, origins: Origins) -> None:
        self.sender = Sender(project, is_public=True)
        self.enabled = enabled
        self.origins = origins
        self.are_open = enabled and origins.allow_all
        """Whether /collect accepts hits from all pages."""

    def allow(self, origin: str) -> bool:
        """Return whether /collect accepts a hit from a page of `origin`."""
        return self.enabled and self.origins.allow(origin)

    def refusal(self, origin: str) -> Refusal | None:
        """Return why /collect refuses a hit from a page of `origin`; None if it accepts it."""
        project = self.sender.project
        if not self.enabled:
            message = "this project takes no hits at /collect; its operator can set collect.enabled"
            return Refusal(403, Code.COLLECT_DISABLED, message, "projectId", project=project)
        return None if self.origins.allow(origin) else not_allowed(origin, project)


def not_allowed(origin: str, project: str = "") -> Refusal:
    """Return the refusal of a page whose origin is not allowed."""
    if origin:
        page = shorten(origin, _SHOWN_CHARACTERS)
        message = (
            f"pages of {page} may not send here; the operator can add this origin to collect.origins of the project"
        )
    else:
        message = "browsers send an Origin header, and this request has none; a server sends to /track with a token"
    return Refusal(403, Code.ORIGIN_NOT_ALLOWED, message, project=project)
