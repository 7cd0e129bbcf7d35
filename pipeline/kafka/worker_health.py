"""Health of a route or deliver process: Kafka, group members and poll threads."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipeline.kafka.reachability import Reachability
from pipeline.kafka.transport.watch import ConsumerWatch
from pipeline.telemetry.health import Health
from pipeline.telemetry.members import Member, Members

logger = logging.getLogger(__name__)

_CALL_SECONDS = 60.0
"""Apart from rebalances, a call takes seconds at most; a call that takes this long counts as hanging."""


@dataclass(frozen=True, slots=True)
class WatchedMember:
    """A group member, its consumer, and the topic that it reads."""

    member: Member
    watch: ConsumerWatch
    topic: str


class WorkerHealth:
    """Adds conditions about Kafka and the members to `health`.

    `want` sets the names of the members. A member does not count as stalled while `excused` returns true for it.
    """

    def __init__(self, health: Health, excused: Callable[[str], bool] = lambda name: False) -> None:
        self.health = health
        self._excused = excused
        self._kafka = Reachability()
        self._members = Members()
        self._watched: dict[str, WatchedMember] = {}
        self._logged_hangs: dict[str, float] = {}
        """Start of each hanging call that was logged, by member."""
        health.readiness.add(self._kafka.conditions)
        health.readiness.add(self._members.conditions)
        health.liveness.add(self._hanging_polls)

    def want(self, names: Iterable[str]) -> None:
        """Set the members of the process; new ones are not ready until they have joined."""
        wanted = list(names)
        self._members.want(wanted, time.monotonic())
        # Replaced as a whole: other threads iterate over it.
        self._watched = {name: known for name, known in self._watched.items() if name in wanted}

    def member(self, name: str, topic: str) -> WatchedMember:
        """Return the member `name`, marked as joining, for a consumer that is being built."""
        member = self._members.get(name, time.monotonic())
        member.joining(time.monotonic())
        watched = WatchedMember(member, ConsumerWatch(), topic)
        self._watched = {**self._watched, name: watched}
        return watched

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Check Kafka and the members on a thread while the block runs."""
        return self.health.watched(self._look)

    def _look(self) -> float:
        """Check everything once; return the seconds until the next check. Blocks for two seconds if Kafka does not respond."""
        self._log_hangs(time.monotonic())
        for name, watched in self._watched.items():
            waiting = watched.watch.has_waiting and not self._excused(name)
            watched.member.observe(waiting, watched.watch.committed_at, time.monotonic())
        # One check is enough, because all members of a process use the same brokers.
        for watched in self._watched.values():
            consumer = watched.watch.consumer
            if consumer is not None:
                self._kafka.observe(consumer.unreachable(watched.topic), time.monotonic())
                break
        else:
            self._kafka.observe(None, time.monotonic())
        return self._kafka.pause_seconds

    def _hangs(self, now: float) -> Iterator[tuple[str, WatchedMember, float]]:
        for name, watched in self._watched.items():
            since = watched.watch.calling_since
            if since is not None and now - since > _CALL_SECONDS:
                yield name, watched, since

    def _hanging_polls(self, now: float) -> Iterator[str]:
        for name, _, since in self._hangs(now):
            yield f"{name}: hangs: a call of its poll thread has taken {now - since:.0f} s"

    def _log_hangs(self, now: float) -> None:
        hangs = list(self._hangs(now))
        for name, watched, since in hangs:
            if self._logged_hangs.get(name) != since:
                logger.error(
                    "poll thread hangs: member=%s seconds=%.0f frames=%s",
                    *(name, now - since, f"\n{watched.watch.stack()}"),
                )
        self._logged_hangs = {name: since for name, _, since in hangs}
