"""Trying until every hit has an outcome that lasts: backoff, one probe at a time, halves, giving up (contract.md, section 6)."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic

from pipeline.delivery.backoff import LAST_BACKOFF_SECONDS, Backoff
from pipeline.delivery.lanes import BatchAtWork, Chunk, Guard, Item, Lane, Line, halves
from pipeline.delivery.pace import TICK_SECONDS, Pace
from pipeline.delivery.refusals import (
    KEEP_PLACES_SECONDS,
    MOST_ASKED_ALONE,
    Decision,
    FinalOutcome,
    Refusals,
    Settled,
)
from pipeline.destination import Misconfigured, Outcome, Rejected, Retry, Verdict
from pipeline.errors import StaleBatch

logger = logging.getLogger("hitrouter.deliver")

FINISH_SECONDS = 4.0
"""How long a batch that is given up waits for its requests in flight, so that their outcomes count. With the time to notice it and
to commit it is shorter than the grace of a rebalance (app.py): outcomes that come later are lost, and their requests repeated."""


class _Unclear:
    """A refused request is asked again in halves, or its hit is settled: that says nothing about the connection."""


_UNCLEAR = _Unclear()
_BESIDE = -1
"""The round of a request beside the lanes."""


def _retrieve_error(task: asyncio.Future[None]) -> None:
    """Mark the error of a finished task as retrieved; asyncio prints a traceback for each one that nobody asks for."""
    if not task.cancelled():
        task.exception()


class Attempts(Generic[Item]):
    """Delivers items of one connection. `send` takes the items of one chunk, and never raises for what the sink answers.

    Unexpected exceptions are retried for this connection; propagating them would stop all others.
    `refused` is asked before each attempt: why an item may not be sent any more. With `refusals` a single item that is answered
    Misconfigured is set aside; without them each such answer makes the connection wait.
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
        longest_backoff_seconds: float = LAST_BACKOFF_SECONDS,
        refused: Callable[[Item], Rejected | None] | None = None,
        give_up_misconfigured_after_seconds: float | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        self._refusals = refusals
        self._connection = connection
        self._send = send
        self._refused = refused
        self._room = asyncio.Semaphore(max_in_flight)
        self._clock = clock
        self._sleep = sleep
        self._pace = Pace(per_second, clock, sleep)
        self._answered_at = -math.inf
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
        """One final outcome (Delivered, Rejected, Skipped, SetAside) per item, in their order.

        `lanes` hold the positions of those that are no outcome yet. Once `guard` finds the batch stale (its partitions are
        gone, or the worker stops) nothing more is sent; requests in flight still count, and items without an outcome are None.

        An item is given up when the connection has failed for the configured time and the item itself has waited as long: so a
        long outage costs no hit more than its own time, and a backlog that meets a short outage costs none. While it is
        misconfigured only those are given up that were answered so themselves.
        """
        outcomes: dict[int, FinalOutcome] = {
            position: item for position, item in enumerate(items) if isinstance(item, Settled)
        }
        batch = BatchAtWork(items, outcomes, guard, [Line(deque(lane)) for lane in lanes])
        with suppress(StaleBatch):
            await self._deliver(batch, age_seconds)
        return [outcomes.get(position) for position in range(len(items))]

    @property
    def seconds_since_answer(self) -> float:
        """How long ago `answered` was last called; infinite when it was not."""
        return self._clock() - self._answered_at

    def answered(self, round_: int | None = None) -> None:
        """The destination took a hit; one that was asked beside the lanes, without a round, ends every pause."""
        self._answered_at = self._clock()
        self._backoff.succeeded(self._backoff.round if round_ is None else round_)
        if self._refusals is not None:
            self._refusals.answered()

    @property
    def is_down(self) -> bool:
        """Does the connection wait for its destination, and is the next request not due yet?"""
        return self._backoff.waits and not self._backoff.misconfigured and self._clock() < self._backoff.probe_at

    async def ask(self, item: Item, guard: Guard) -> Outcome:
        """Send one item once, beside the lanes but at the connection's rate. Raises StaleBatch.

        An item that is taken ends every pause, and a `Retry-After` makes the lanes wait, too.
        """

        def wanted() -> bool:
            guard.raise_if_stale()
            return True

        await self._pace.turn(1, wanted)
        why = None if self._refused is None else self._refused(item)
        if why is not None:
            return why
        await guard.verify()
        verdict = await self._send_once([item])
        outcome = verdict[0] if isinstance(verdict, Sequence) else verdict
        if not isinstance(outcome, Retry | Misconfigured):
            self.answered()
        elif isinstance(outcome, Retry) and outcome.after_seconds:
            self._backoff.failed(outcome, _BESIDE)
        return outcome

    async def _send_once(self, items: Sequence[Item]) -> Verdict:
        try:
            return await self._send(items)
        except Exception as error:
            logger.exception("unexpected error while sending, will retry: connection=%s", self._connection)
            return Retry(f"unforeseen_{type(error).__name__}")

    async def _deliver(self, batch: BatchAtWork[Item], age_seconds: Callable[[int], float]) -> None:
        backoff, looked = self._backoff, (-1, False)
        while lines := [line for line in batch.lines if line.chunks]:
            batch.lines = lines
            batch.guard.raise_if_stale()
            # Once after each probe, and when the time is over for which hits keep their places: the next probe may be minutes away.
            look = (backoff.round, backoff.misconfigured_seconds >= KEEP_PLACES_SECONDS)
            if backoff.waits and looked != look:
                looked = look
                if self._make_room(batch):
                    continue
            if backoff.waits and (left := backoff.probe_at - self._clock()) > 0:
                # Give up overdue hits now; waiting for the next probe makes more of them overdue.
                if not self._give_up_late(batch, age_seconds):
                    await self._sleep(min(left, TICK_SECONDS))
                continue
            if backoff.waits:
                await self._probe(batch)
                # Another lane is the next to probe: what one hit can't pass may be no obstacle for the others.
                batch.lines.append(batch.lines.pop(0))
            else:
                await self._drain_all(batch)

    async def _drain_all(self, batch: BatchAtWork[Item]) -> None:
        pending = {asyncio.ensure_future(self._drain(batch, line)) for line in batch.lines}
        for drain in pending:  # each of them may raise StaleBatch; only the first is raised below
            drain.add_done_callback(_retrieve_error)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=TICK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for drain in done:
                    drain.result()
                if pending:  # all drains may be in a slow request, so none would look
                    batch.guard.raise_if_stale()
        except StaleBatch:
            # Each drain ends at its next look at the guard. What is in flight after that ends by itself, and counts no more.
            limit = asyncio.ensure_future(self._sleep(FINISH_SECONDS))
            while pending and not limit.done():
                await asyncio.wait({limit, *pending}, return_when=asyncio.FIRST_COMPLETED)
                pending = {drain for drain in pending if not drain.done()}
            limit.cancel()
            raise

    def _give_up_late(self, batch: BatchAtWork[Item], age_seconds: Callable[[int], float]) -> bool:
        """Take out of the lanes what has waited too long; return whether there was any."""
        gave_up = self._backoff.gave_up()
        if gave_up is None:
            return False
        limit, misconfigured = self._backoff.give_up_after_seconds, self._backoff.misconfigured
        late = {
            position
            for line in batch.lines
            for chunk in line.chunks
            for position in chunk
            # One hit's 403 may be its own fault: those behind it are asked before they are given up.
            if age_seconds(position) >= limit and (not misconfigured or position in batch.forbidden)
        }
        batch.outcomes.update(dict.fromkeys(late, gave_up))
        batch.take_out(late)
        return bool(late)

    async def _probe(self, batch: BatchAtWork[Item]) -> None:
        """Send one request while the connection waits."""
        if self._refusals is None or not self._backoff.misconfigured:
            await self._send_head(batch, batch.lines[0])
            return
        # A single hit, and one that was not asked yet, wherever it stands: those that were asked may be at fault themselves.
        fresh = batch.first_outside(batch.forbidden)
        position = next(iter(batch.forbidden)) if fresh is None else fresh
        await self._send_head(batch, Line(deque([[position]])))
        if position in batch.outcomes:
            batch.take_out({position})

    def _make_room(self, batch: BatchAtWork[Item]) -> bool:
        """Set hits aside once every hit that is left was refused; return whether any was, and the allowance sufficed.

        All of them may be at fault, and the hits behind them are not read yet. Without this, two such hits in a quiet hour would
        stop the connection for good.
        """
        refusals = self._refusals
        if refusals is None or not self._backoff.is_refused or batch.first_outside(batch.forbidden) is not None:
            return False
        room = refusals.room_in_pause(len(batch.forbidden), self._backoff.misconfigured_seconds)
        for position in sorted(batch.forbidden)[:room]:
            outcome = refusals.outcome_in_pause(self._backoff.refusal)
            if outcome is None:
                return False
            batch.outcomes[position] = outcome
            batch.take_out({position})
        if room:
            self._backoff.probe_soon()
        return room > 0

    async def _drain(self, batch: BatchAtWork[Item], line: Line) -> None:
        """Send until the lane is empty or the connection waits; a failure alone holds up its own lane only."""
        while line.chunks and not self._backoff.waits:
            batch.guard.raise_if_stale()
            if (left := line.not_before - self._clock()) > 0:
                await self._sleep(min(left, TICK_SECONDS))
            else:
                await self._send_head(batch, line)

    async def _send_head(self, batch: BatchAtWork[Item], line: Line) -> None:
        """One attempt; what is not settled by it stays at the head of the lane."""
        backoff, probing = self._backoff, self._backoff.waits

        def wanted() -> bool:
            batch.guard.raise_if_stale()
            return probing or not backoff.waits

        async with self._room:
            if not await self._pace.turn(len(line.chunks[0]), wanted) or self._refuse_head(batch, line):
                return
            await batch.guard.verify()
            round_ = backoff.round
            failure = await self._attempt(batch, line.chunks)
        if failure is None:
            self.answered(round_)
            line.failures = 0
            batch.forbidden.clear()
        elif not isinstance(failure, _Unclear):
            is_refusal = self._refusals is not None and isinstance(failure, Misconfigured) and failure.is_answer
            asks_others = is_refusal and batch.first_outside(batch.forbidden) is not None
            backoff.failed(failure, round_, asks_others)
            if not backoff.waits:
                line.failures += 1
                line.not_before = self._clock() + backoff.pause_seconds(line.failures)

    def _refuse_head(self, batch: BatchAtWork[Item], line: Line) -> bool:
        """Take out of the next chunk what may not be sent any more; return whether nothing is left of it."""
        if self._refused is None:
            return False
        kept: Chunk = []
        for position in line.chunks[0]:
            why = self._refused(batch.items[position])  # type: ignore[arg-type] # lanes hold no outcomes
            if why is None:
                kept.append(position)
            else:
                batch.outcomes[position] = why
        line.chunks.popleft()
        if kept:
            line.chunks.appendleft(kept)
        return not kept

    async def _attempt(self, batch: BatchAtWork[Item], lane: deque[Chunk]) -> Retry | Misconfigured | _Unclear | None:
        chunk = lane[0]
        verdict = await self._send_once([batch.items[position] for position in chunk])  # type: ignore[misc] # no outcomes
        lane.popleft()
        if isinstance(verdict, Rejected) and len(chunk) > 1:
            lane.extendleft(halves(chunk))
            return None
        each = [verdict] * len(chunk) if not isinstance(verdict, Sequence) else verdict
        if self._refusals is not None and all(isinstance(outcome, Misconfigured) for outcome in each):
            return self._weigh(self._refusals, batch, lane, chunk, each[0])  # type: ignore[arg-type] # see above
        failure: Retry | Misconfigured | None = None
        unfinished: Chunk = []
        for position, outcome in zip(chunk, each, strict=True):
            if isinstance(outcome, Misconfigured) and self._refusals is not None:  # others of its request were not
                self._settle_alone(self._refusals, batch, lane, position, outcome)
            elif isinstance(outcome, Retry | Misconfigured):
                unfinished.append(position)
                failure = outcome
                if isinstance(outcome, Misconfigured) and outcome.is_answer:
                    batch.note_forbidden([position])
            else:
                batch.outcomes[position] = outcome
        if unfinished:
            lane.appendleft(unfinished)
        if isinstance(failure, Retry) and failure.after_seconds == 0.0 and 0 < len(unfinished) < len(chunk):
            # The destination has named those at fault and took none: without them the others may go at once.
            return None
        return failure

    def _weigh(
        self, refusals: Refusals, batch: BatchAtWork[Item], lane: deque[Chunk], chunk: Chunk, refusal: Misconfigured
    ) -> Misconfigured | _Unclear:
        """All of a request is Misconfigured."""
        if not refusal.is_answer:  # the destination has not seen it, so none of its hits is at fault
            lane.appendleft(chunk)
            return refusal
        match refusals.refused(batch.token, chunk, not batch.doubtful.isdisjoint(chunk)):
            case Decision.HALVE:
                lane.extendleft(halves(chunk))
                return _UNCLEAR
            case Decision.STANDS_ALONE:
                self._settle_alone(refusals, batch, lane, chunk[0], refusal)
                return _UNCLEAR
            case Decision.PAUSE:
                lane.appendleft(chunk)
                batch.doubtful.update(chunk)
                if len(chunk) == 1:
                    batch.note_forbidden(chunk)
                return refusal

    def _settle_alone(
        self, refusals: Refusals, batch: BatchAtWork[Item], lane: deque[Chunk], position: int, refusal: Misconfigured
    ) -> None:
        """Set a hit aside; beyond the allowance ask it again at once, since one of several backends may have a wrong key."""
        outcome = refusals.outcome(refusal)
        batch.refused_alone[position] += 1
        if isinstance(outcome, Rejected) and batch.refused_alone[position] < MOST_ASKED_ALONE:
            lane.appendleft([position])
        else:
            batch.outcomes[position] = outcome
