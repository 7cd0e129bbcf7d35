"""Decides whether a request may proceed now: by the rate limit of its project, and by the project's share of the intake.

Both are checked before a batch is expanded, which costs a thousand times more than the check. Only configured projects have
entries, so strangers can't add any.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipeline.codec.hit_text import BODY_BYTES
from pipeline.config.models import LimitsConfig, ProjectConfig
from pipeline.intake import answers
from pipeline.intake.rate_limit import RateLimit, rate_limit
from pipeline.intake.shares import Share, Shares, Waiting
from pipeline.stages.accept import Sender

if TYPE_CHECKING:
    from pipeline.intake.exchange import Exchange


class Traffic:
    """Rate limit and share for one project and one kind of door, secret or public; both kinds use the same share."""

    __slots__ = ("limit", "project", "share")

    def __init__(self, project: str, share: Share) -> None:
        self.project = project
        self.share = share
        self.limit: RateLimit | None = None


def _soon(call: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_soon(call)


class Admission:
    """Admission control of one of `workers` intake processes. Call from the loop only."""

    def __init__(
        self,
        projects: Mapping[str, ProjectConfig] | None = None,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
        soon: Callable[[Callable[[], None]], object] = _soon,
    ) -> None:
        self._workers = workers
        self._clock = clock
        self._limits: dict[str, LimitsConfig] = {}
        self._shares: dict[str, Share] = {}
        self._traffic: dict[tuple[str, bool], Traffic] = {}
        self.shares = Shares(clock, soon)
        self.replace(projects or {})

    def replace(self, projects: Mapping[str, ProjectConfig]) -> None:
        """Apply a changed configuration; an unchanged limit keeps its buckets."""
        self._limits = {name: project.limits for name, project in projects.items()}
        self._shares = {name: share for name, share in self._shares.items() if name in projects}
        self._traffic = {kind: traffic for kind, traffic in self._traffic.items() if kind[0] in projects}
        for kind in self._traffic:
            self._set_limit(*kind)

    def traffic(self, project: str, is_public: bool) -> Traffic:
        """Return the traffic of an authenticated project, for its secret or its public doors."""
        found = self._traffic.get((project, is_public))
        if found is None:
            share = self._shares.setdefault(project, self.shares.new())
            found = self._traffic[project, is_public] = Traffic(project, share)
            self._set_limit(project, is_public)
        return found

    def _set_limit(self, project: str, is_public: bool) -> None:
        traffic = self._traffic[project, is_public]
        limits = self._limits.get(project)
        if limits is not None:
            configured = limits.public if is_public else limits.secret
            traffic.limit = rate_limit(configured, self._workers, self._clock(), traffic.limit)

    def admits(self, exchange: Exchange, resume: Waiting, sender: Sender | None = None) -> bool:
        """Return False if the request must wait; `resume` is called later. A refusal is set as its answer.

        `sender` is given once a parsed body has named it. For batches the body is searched for it before parsing; for a small
        body the search would cost as much as parsing.
        """
        traffic = exchange.traffic
        if traffic is None:
            sender = sender or self._named(exchange)
            if sender is None:
                return True
            traffic = exchange.traffic = self._traffic.get(sender) or self.traffic(*sender)
        if traffic.limit is not None and not self.is_within_limit(exchange, traffic.limit):
            return True
        if traffic.share.is_free:
            return True
        traffic.share.wait(exchange, resume)
        return False

    def is_within_limit(self, exchange: Exchange, limit: RateLimit) -> bool:
        """Return whether the project may send now; if not, set a refusal as the answer of `exchange`."""
        exceeded = limit.exceeded(self._clock)
        if exceeded is None:
            return True
        assert exchange.traffic is not None
        exchange.answer = answers.too_many_requests(exchange.traffic.project, *exceeded)
        return False

    def sweep(self, now: float) -> None:
        """Refill limits and expire waiting requests; call it about twice a second."""
        for traffic in self._traffic.values():
            if traffic.limit is not None:
                traffic.limit.refill(now)
        self.shares.sweep(now)

    def _named(self, exchange: Exchange) -> Sender | None:
        endpoint = exchange.head.endpoint
        if endpoint is None or endpoint.body_bytes == BODY_BYTES:
            return None
        return endpoint.find_sender(exchange.plain_body())
