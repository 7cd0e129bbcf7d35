"""Sends items until each has a final outcome: backoff, single probes, halving, giving up (contract.md, section 6)."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic

from pipeline.delivery.backoff import LONGEST_BACKOFF_SECONDS, Backoff
from pipeline.delivery.lanes import BatchState, Chunk, Guard, Item, Lane, LaneState, halves
from pipeline.delivery.pace import TICK_SECONDS, Pace
from pipeline.delivery.refusals import (
    KEEP_ORDER_SECONDS,
    MOST_SENDS_ALONE,
    FinalOutcome,
    RefusalAction,
    Refusals,
    Settled,
)
from pipeline.destination import Misconfigured, Outcome, Rejected, Retry, Verdict
from pipeline.errors import StaleBatch

logger = logging.getLogger(__name__)

FINISH_SECONDS = 4.0
"""How long a stale batch waits for its requests in flight, so that their outcomes can be committed. Detection, this wait and the
commit fit into the grace period of a rebalance (app.py). Outcomes that arrive later are lost, and their requests are repeated."""


class _Inconclusive:
    """A refused request that is sent again in halves, or whose hit is settled. It indicates nothing about the connection."""


_INCONCLUSIVE = _Inconclusive()
_NO_ROUND = -1
"""The round of a request outside the lanes."""


def _retrieve_error(task: asyncio.Future[None]) -> None:
    """Mark the error of a finished task as retrieved; asyncio logs a traceback for each error that is not."""
    if not task.cancelled():
        task.exception()


class Attempts(Generic[Item]):
    """Delivers the items of one connection. `send` sends one chunk, and returns outcomes for all responses of the sink.

    Unexpected exceptions are retried for this connection; propagating them would stop all others.
    Before each attempt, `reject` returns the rejection of an item that may no longer be sent. With `refusals`, an item that is
    answered Misconfigured alone is set aside. Without it, each such answer pauses the connection.
    """

    def __init__(
        self,
        connection: str,
        send: Callable[[Sequence[Item]], Awaitable[Verdict]],
        max_in_flight: int,
        give_up_after_seconds: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
        per_second: float | None = None,
        longest_backoff_seconds: float = LONGEST_BACKOFF_SECONDS,
        reject: Callable[[Item], Rejected | None] | None = None,
        give_up_misconfigured_after_seconds: float | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        self._refusals = refusals
        self._connection = connection
        self._send = send
        self._reject = reject
        self._in_flight = asyncio.Semaphore(max_in_flight)
        self._clock = clock
        self._sleep = sleep
        self._pace = Pace(per_second, clock, sleep)
        self._healthy_at = -math.inf
        self._backoff = Backoff(
            connection, give_up_after_seconds, clock, draw, longest_backoff_seconds, give_up_misconfigured_after_seconds
        )

    async def deliver(
        self,
        items: Sequence[Item | Settled],
        lanes: Sequence[Lane],
        guard: Guard,
        age_seconds: Callable[[int], float] = lambda position: math.inf,
    ) -> list[FinalOutcome | None]:
        """Return one final outcome (Delivered, Rejected, Skipped, SetAside) per item, in order.

        `lanes` holds the positions of the items that have no outcome yet. Once `guard` finds the batch stale (its partitions are
        revoked, or the worker stops), nothing more is sent. Requests in flight still count; items without an outcome are None.

        An item is given up when both the connection has failed and the item has waited for the configured time. So a long outage
        costs a hit only after the hit's own wait, and a short outage costs no hit of a backlog. While the connection is
        misconfigured, only items that were refused themselves are given up.
        """
        outcomes: dict[int, FinalOutcome] = {
            position: item for position, item in enumerate(items) if isinstance(item, Settled)
        }
        batch = BatchState(items, outcomes, guard, [LaneState(deque(lane)) for lane in lanes])
        with suppress(StaleBatch):
            await self._deliver(batch, age_seconds)
        return [outcomes.get(position) for position in range(len(items))]

    @property
    def seconds_since_healthy(self) -> float:
        """Seconds since the last call of `note_healthy`; infinite before the first."""
        return self._clock() - self._healthy_at

    def note_healthy(self, round_: int | None = None) -> None:
        """Note that the destination accepted a hit, or rejected one for the hit's own fault.

        A request outside the lanes has no round; it ends every pause.
        """
        self._healthy_at = self._clock()
        self._backoff.succeeded(self._backoff.round if round_ is None else round_)
        if self._refusals is not None:
            self._refusals.note_healthy()

    @property
    def is_down(self) -> bool:
        """True while the destination is failing and no probe is due."""
        return self._backoff.is_paused and not self._backoff.is_misconfigured and self._clock() < self._backoff.probe_at

    async def send_one(self, item: Item, guard: Guard) -> Outcome:
        """Send one item once, outside the lanes but within the connection's rate. Raises StaleBatch.

        An accepted item ends every pause. A `Retry-After` pauses the lanes, too.
        """

        def is_wanted() -> bool:
            guard.raise_if_stale()
            return True

        await self._pace.acquire(1, is_wanted)
        rejection = None if self._reject is None else self._reject(item)
        if rejection is not None:
            return rejection
        await guard.verify()
        verdict = await self._send_once([item])
        outcome = verdict[0] if isinstance(verdict, Sequence) else verdict
        if not isinstance(outcome, Retry | Misconfigured):
            self.note_healthy()
        elif isinstance(outcome, Retry) and outcome.after_seconds:
            self._backoff.failed(outcome, _NO_ROUND)
        return outcome

    async def _send_once(self, items: Sequence[Item]) -> Verdict:
        try:
            return await self._send(items)
        except Exception as error:
            logger.exception("unexpected error while sending, will retry: connection=%s", self._connection)
            return Retry(f"unforeseen_{type(error).__name__}")

    async def _deliver(self, batch: BatchState[Item], age_seconds: Callable[[int], float]) -> None:
        backoff, checked = self._backoff, (-1, False)
        while lanes := [lane for lane in batch.lanes if lane.chunks]:
            batch.lanes = lanes
            batch.guard.raise_if_stale()
            # Once after each probe, and once when hits no longer keep their order: the next probe may be minutes away.
            check = (backoff.round, backoff.misconfigured_seconds >= KEEP_ORDER_SECONDS)
            if backoff.is_paused and checked != check:
                checked = check
                if self._set_refused_aside(batch):
                    continue
            if backoff.is_paused and (left := backoff.probe_at - self._clock()) > 0:
                # Give up overdue hits now; waiting for the next probe makes more of them overdue.
                if not self._give_up_overdue(batch, age_seconds):
                    await self._sleep(min(left, TICK_SECONDS))
                continue
            if backoff.is_paused:
                await self._probe(batch)
                # Rotate the lanes: the cause may be one hit, so the next probe uses another lane.
                batch.lanes.append(batch.lanes.pop(0))
            else:
                await self._drain_all(batch)

    async def _drain_all(self, batch: BatchState[Item]) -> None:
        pending = {asyncio.ensure_future(self._drain(batch, lane)) for lane in batch.lanes}
        for drain in pending:  # each of them may raise StaleBatch; only the first error is raised below
            drain.add_done_callback(_retrieve_error)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=TICK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for drain in done:
                    drain.result()
                if pending:  # all drains may be waiting for slow requests, so none of them checks the guard
                    batch.guard.raise_if_stale()
        except StaleBatch:
            # Each drain ends at its next check of the guard. Requests that are still in flight after the limit do not count.
            limit = asyncio.ensure_future(self._sleep(FINISH_SECONDS))
            while pending and not limit.done():
                await asyncio.wait({limit, *pending}, return_when=asyncio.FIRST_COMPLETED)
                pending = {drain for drain in pending if not drain.done()}
            limit.cancel()
            raise

    def _give_up_overdue(self, batch: BatchState[Item], age_seconds: Callable[[int], float]) -> bool:
        """Give up the items that have waited too long; return whether there were any."""
        outcome = self._backoff.give_up_outcome()
        if outcome is None:
            return False
        limit, is_misconfigured = self._backoff.give_up_after_seconds, self._backoff.is_misconfigured
        overdue = {
            position
            for lane in batch.lanes
            for chunk in lane.chunks
            for position in chunk
            # A 403 may be the fault of one hit, so the hits behind it are sent before they are given up.
            if age_seconds(position) >= limit and (not is_misconfigured or position in batch.refused)
        }
        batch.outcomes.update(dict.fromkeys(overdue, outcome))
        batch.remove(overdue)
        return bool(overdue)

    async def _probe(self, batch: BatchState[Item]) -> None:
        """Send one request while the connection is paused."""
        if self._refusals is None or not self._backoff.is_misconfigured:
            await self._send_first_chunk(batch, batch.lanes[0])
            return
        # A single hit, preferably one that was not refused yet: a refused hit may be the cause itself.
        fresh = batch.first_not_in(batch.refused)
        position = next(iter(batch.refused)) if fresh is None else fresh
        await self._send_first_chunk(batch, LaneState(deque([[position]])))
        if position in batch.outcomes:
            batch.remove({position})

    def _set_refused_aside(self, batch: BatchState[Item]) -> bool:
        """Set hits aside if every remaining hit was refused; return whether any was set aside within the limits.

        All of them may be at fault, and the hits behind them are not read yet. Without this, two such hits in a quiet hour would
        stop the connection for good.
        """
        refusals = self._refusals
        if refusals is None or not self._backoff.is_refused or batch.first_not_in(batch.refused) is not None:
            return False
        allowed = refusals.allowed_in_pause(len(batch.refused), self._backoff.misconfigured_seconds)
        for position in sorted(batch.refused)[:allowed]:
            outcome = refusals.outcome_in_pause(self._backoff.refusal)
            if outcome is None:
                return False
            batch.outcomes[position] = outcome
            batch.remove({position})
        if allowed:
            self._backoff.probe_soon()
        return allowed > 0

    async def _drain(self, batch: BatchState[Item], lane: LaneState) -> None:
        """Send until the lane is empty or the connection pauses; a single failure delays only its own lane."""
        while lane.chunks and not self._backoff.is_paused:
            batch.guard.raise_if_stale()
            if (left := lane.not_before - self._clock()) > 0:
                await self._sleep(min(left, TICK_SECONDS))
            else:
                await self._send_first_chunk(batch, lane)

    async def _send_first_chunk(self, batch: BatchState[Item], lane: LaneState) -> None:
        """Make one attempt with the first chunk of `lane`; its unsettled items stay at the head of the lane."""
        backoff, is_probe = self._backoff, self._backoff.is_paused

        def is_wanted() -> bool:
            batch.guard.raise_if_stale()
            return is_probe or not backoff.is_paused

        async with self._in_flight:
            if not await self._pace.acquire(len(lane.chunks[0]), is_wanted) or self._reject_first_chunk(batch, lane):
                return
            await batch.guard.verify()
            round_ = backoff.round
            failure = await self._attempt(batch, lane.chunks)
        if failure is None:
            self.note_healthy(round_)
            lane.failures = 0
            batch.refused.clear()
        elif not isinstance(failure, _Inconclusive):
            is_refusal = self._refusals is not None and isinstance(failure, Misconfigured) and failure.is_answer
            has_other_hits = is_refusal and batch.first_not_in(batch.refused) is not None
            backoff.failed(failure, round_, has_other_hits)
            if not backoff.is_paused:
                lane.failures += 1
                lane.not_before = self._clock() + backoff.lane_pause_seconds(lane.failures)

    def _reject_first_chunk(self, batch: BatchState[Item], lane: LaneState) -> bool:
        """Remove the items of the first chunk that may no longer be sent; return whether the chunk is empty."""
        if self._reject is None:
            return False
        kept: Chunk = []
        for position in lane.chunks[0]:
            rejection = self._reject(batch.items[position])  # type: ignore[arg-type] # lanes hold no outcomes
            if rejection is None:
                kept.append(position)
            else:
                batch.outcomes[position] = rejection
        lane.chunks.popleft()
        if kept:
            lane.chunks.appendleft(kept)
        return not kept

    async def _attempt(
        self, batch: BatchState[Item], lane: deque[Chunk]
    ) -> Retry | Misconfigured | _Inconclusive | None:
        chunk = lane[0]
        verdict = await self._send_once([batch.items[position] for position in chunk])  # type: ignore[misc] # no outcomes
        lane.popleft()
        if isinstance(verdict, Rejected) and len(chunk) > 1:
            lane.extendleft(halves(chunk))
            return None
        each = [verdict] * len(chunk) if not isinstance(verdict, Sequence) else verdict
        if self._refusals is not None and all(isinstance(outcome, Misconfigured) for outcome in each):
            return self._handle_refusal(self._refusals, batch, lane, chunk, each[0])  # type: ignore[arg-type] # see above
        failure: Retry | Misconfigured | None = None
        unfinished: Chunk = []
        for position, outcome in zip(chunk, each, strict=True):
            if (
                isinstance(outcome, Misconfigured) and self._refusals is not None
            ):  # others of its request were not refused
                self._settle_alone(self._refusals, batch, lane, position, outcome)
            elif isinstance(outcome, Retry | Misconfigured):
                unfinished.append(position)
                failure = outcome
                if isinstance(outcome, Misconfigured) and outcome.is_answer:
                    batch.mark_refused([position])
            else:
                batch.outcomes[position] = outcome
        if unfinished:
            lane.appendleft(unfinished)
        if isinstance(failure, Retry) and failure.after_seconds == 0.0 and 0 < len(unfinished) < len(chunk):
            # The destination named the events at fault and stored none: the others can be sent again at once.
            return None
        return failure

    def _handle_refusal(
        self, refusals: Refusals, batch: BatchState[Item], lane: deque[Chunk], chunk: Chunk, refusal: Misconfigured
    ) -> Misconfigured | _Inconclusive:
        """Handle a request whose items are all Misconfigured."""
        if not refusal.is_answer:  # the destination has not seen the request, so none of its hits is at fault
            lane.appendleft(chunk)
            return refusal
        match refusals.handle(batch.token, chunk, not batch.refused_in_pause.isdisjoint(chunk)):
            case RefusalAction.HALVE:
                lane.extendleft(halves(chunk))
                return _INCONCLUSIVE
            case RefusalAction.SETTLE_ALONE:
                self._settle_alone(refusals, batch, lane, chunk[0], refusal)
                return _INCONCLUSIVE
            case RefusalAction.PAUSE:
                lane.appendleft(chunk)
                batch.refused_in_pause.update(chunk)
                if len(chunk) == 1:
                    batch.mark_refused(chunk)
                return refusal

    def _settle_alone(
        self, refusals: Refusals, batch: BatchState[Item], lane: deque[Chunk], position: int, refusal: Misconfigured
    ) -> None:
        """Set a hit aside. With an empty token bucket, send it again at once: one of several backends may have a wrong key."""
        outcome = refusals.outcome_alone(refusal)
        batch.refused_alone[position] += 1
        if isinstance(outcome, Rejected) and batch.refused_alone[position] < MOST_SENDS_ALONE:
            lane.appendleft([position])
        else:
            batch.outcomes[position] = outcome
