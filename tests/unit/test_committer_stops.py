"""Stops that meet a rebalance: `leave` of a stopping worker beside `leave` of a revocation."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.test_committer import Worker, batch_of, started, turns

pytestmark = pytest.mark.anyio


async def revoked(worker: Worker, grace_seconds: float) -> None:
    await worker.committer.leave(grace_seconds)
    worker.committer.released()


async def side_effect(worker: Worker, ended: asyncio.Event) -> None:
    with worker.committer.guard(batch_of(worker)):
        await ended.wait()


async def holding(worker: Worker) -> tuple[asyncio.Future[None], asyncio.Event]:
    ended = asyncio.Event()
    effect = asyncio.ensure_future(side_effect(worker, ended))
    await turns()
    return effect, ended


async def test_a_stop_during_a_revocation_that_waits_for_side_effects() -> None:
    worker = await started()
    effect, ended = await holding(worker)
    revocation = asyncio.ensure_future(revoked(worker, 6.0))
    await turns()
    stop = asyncio.ensure_future(worker.committer.leave(6.0))
    await turns()
    ended.set()
    await asyncio.gather(effect, revocation, stop)


async def test_a_stop_and_a_revocation_whose_grace_ends() -> None:
    worker = await started()
    effect, ended = await holding(worker)
    revocation = asyncio.ensure_future(revoked(worker, 0.05))
    await turns()
    await asyncio.gather(revocation, worker.committer.leave(0.05))
    ended.set()
    await effect


@pytest.mark.parametrize("grace_seconds", [0.0, 6.0])
@pytest.mark.parametrize("later", range(5))
async def test_a_stop_some_turns_after_a_revocation(grace_seconds: float, later: int) -> None:
    worker = await started()
    revocation = asyncio.ensure_future(revoked(worker, grace_seconds))
    for _ in range(later):
        await asyncio.sleep(0)
    await asyncio.gather(revocation, worker.committer.leave(grace_seconds))


async def test_a_second_stop_after_an_unknown_outcome() -> None:
    worker = await started()
    worker.poll(3)
    await turns()
    effect, ended = await holding(worker)
    stop = asyncio.ensure_future(worker.committer.leave(6.0))
    await turns()
    worker.kafka.offset = 5  # the next owner of the partition has gone on
    worker.slot.decide("unknown, aborted")
    await turns()
    assert worker.must_rejoin
    ended.set()
    await asyncio.gather(effect, stop)
    await worker.committer.leave(6.0)
    assert worker.must_rejoin, "the state in memory may still be wrong"


@pytest.mark.parametrize("later", range(5))
async def test_partitions_that_are_assigned_during_a_stop(later: int) -> None:
    worker = await started()
    await worker.revoked(lost=False)
    stop = asyncio.ensure_future(worker.committer.leave(6.0))
    for _ in range(later):
        await asyncio.sleep(0)
    await worker.assigned()
    await stop
    await worker.committer.leave(6.0)


@pytest.mark.parametrize("later", range(5))
async def test_a_revocation_and_a_stop_after_an_unknown_outcome(later: int) -> None:
    worker = await started()
    worker.poll(3)
    await turns()
    revocation = asyncio.ensure_future(revoked(worker, 0.0))
    await turns()
    worker.kafka.offset = 5
    worker.slot.decide("unknown, aborted")
    for _ in range(later):
        await asyncio.sleep(0)
    await asyncio.gather(revocation, worker.committer.leave(6.0))


async def test_the_grace_period_does_not_begin_again_before_the_next_assignment() -> None:
    worker = await started()
    effect, ended = await holding(worker)
    stop = asyncio.ensure_future(worker.committer.leave(0.05))
    await turns()
    await asyncio.gather(revoked(worker, 0.05), stop)
    worker.now += 10
    await asyncio.wait_for(worker.committer.leave(60.0), 5)
    ended.set()
    await effect
