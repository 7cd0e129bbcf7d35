"""A deliverer that reports to the health of the process while a batch is being delivered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from faust.types import TP

from pipeline.delivery.deliverers import Deliverer, Received
from pipeline.delivery.lanes import Guard
from pipeline.delivery.refusals import FinalOutcome
from pipeline.telemetry.members import Member


class MonitoredDeliverer:
    """Wraps another deliverer, and reports the start and end of each batch to `member`."""

    def __init__(self, deliverer: Deliverer, member: Member) -> None:
        self._deliverer = deliverer
        self._member = member

    async def deliver(
        self, received: Mapping[TP, Sequence[Received]], guard: Guard
    ) -> dict[TP, list[FinalOutcome | None]]:
        """See Deliverer."""
        self._member.sending(time.monotonic())
        try:
            return await self._deliverer.deliver(received, guard)
        finally:
            self._member.sent()

    def reset(self) -> None:
        """See Deliverer."""
        self._deliverer.reset()

    async def close(self) -> None:
        """See Deliverer."""
        await self._deliverer.close()
