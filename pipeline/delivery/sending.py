"""A deliverer that tells the health of the process while a batch is with its destination."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from faust.types import TP

from pipeline.delivery.deliverers import Deliverer, Received
from pipeline.delivery.lanes import Guard
from pipeline.delivery.refusals import FinalOutcome
from pipeline.telemetry.members import Member


class SendingDeliverer:
    """Delivers through another one."""

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

    def forget(self) -> None:
        """See Deliverer."""
        self._deliverer.forget()

    async def close(self) -> None:
        """See Deliverer."""
        await self._deliverer.close()
