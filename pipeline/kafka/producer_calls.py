"""The blocking calls of a slot's producer: made until their outcome is known, on an instance that can be replaced."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from pipeline.errors import BrokerUnavailable, OutcomeUnknown, RecordsRefused, TransactionAborted, WorkerMustRestart
from pipeline.kafka.daemon_thread import ABANDONED_MOST, abandoned_calls
from pipeline.kafka.producer_instance import ProducerInstance
from pipeline.kafka.slot_state import Demand, Patience, Probe, Step, demand_of, is_fence, is_refusal
from pipeline.kafka.stuck import LostClient

logger = logging.getLogger(__name__)

CALL_SECONDS = 10.0
"""Time-out of one blocking call; it is called again until the outcome is known."""
_MARGIN_SECONDS = 2.0
"""The coordinator looks for old transactions once in a while, so it ends them this much later."""
_SETTLE_SECONDS = 3.0
"""After an outage, a call that is undecided although Kafka has answered for this long hangs."""
_SETTLE_DOUBLINGS = 4
_TICK_SECONDS = 1.0
_LONG_SECONDS = 5.0
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_REPLACE_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)
_ABORTS_IN_A_ROW = 3
_RENEWING = threading.BoundedSemaphore(8)
"""After an outage a deliverer of 50 connections renews 50 producers: each starts threads and asks for a producer id."""
_RENEWAL_SECONDS = 3.0
"""A producer that does not get its turn within this time is kept: others may wait for a coordinator that is away."""


class InstanceLost(Exception):
    """The instance must be replaced; `hangs`: in a call that has not returned."""

    def __init__(self, reason: str, hangs: bool = False) -> None:
        super().__init__(reason)
        self.hangs = hangs


class ProducerCalls:
    """Makes blocking calls on the current instance and decides when it must be replaced. Call from one thread."""

    def __init__(
        self,
        transactional_id: str,
        timeout_seconds: float,
        make: Callable[[], ProducerInstance],
        servers: str,
        reaches: Callable[[], bool],
    ) -> None:
        self.closing = threading.Event()
        self.give_up_at = math.inf
        """On the monotonic clock: give up waiting for Kafka then."""
        self._transactional_id = transactional_id
        self._timeout_seconds = timeout_seconds
        self._servers = servers
        self._make = make
        self._lost = LostClient(reaches)
        self._began = (0.0, 0.0)
        self._succeeded_at = time.monotonic()
        self._replaced_in_a_row = self._aborts_in_a_row = 0
        self._patience = Patience(timeout_seconds, _MARGIN_SECONDS, _SETTLE_SECONDS)
        self.instance = make()

    def begin(self) -> None:
        """A transaction begins now."""
        self._began = (time.monotonic(), time.time())
        self._patience.settle_seconds = _SETTLE_SECONDS * 2 ** min(self._replaced_in_a_row, _SETTLE_DOUBLINGS)

    def succeeded(self, committed: bool) -> None:
        """A transaction ended as wanted."""
        self._succeeded_at = time.monotonic()
        self._aborts_in_a_row += 1
        if committed:
            self._replaced_in_a_row = self._aborts_in_a_row = 0

    @property
    def is_doubtful(self) -> bool:
        """Says whether several transactions in a row were aborted, which may be the instance's fault."""
        return self._aborts_in_a_row >= _ABORTS_IN_A_ROW

    def initialise(self) -> None:
        """Run `init_transactions`. Raises InstanceLost, BrokerUnavailable, OutcomeUnknown on `closing`."""
        # Never given up while the call runs, which it does for CALL_SECONDS: its request, sent late, would fence the next instance.
        self.decide(Step.INITIALISE)
        self._succeeded_at = time.monotonic()

    @contextlib.contextmanager
    def one_of_few(self) -> Iterator[bool]:
        """Yields whether the instance may be renewed now, while only a few of this process are; waits some seconds for it."""
        may = not self.closing.is_set() and _RENEWING.acquire(timeout=_RENEWAL_SECONDS)
        try:
            if may:
                self._replaced_in_a_row = 0  # nothing has failed
            yield may
        finally:
            if may:
                _RENEWING.release()

    def replace(self, lost: InstanceLost) -> None:
        """Throw the instance away and initialise others until one succeeds. Raises as `initialise`, but InstanceLost."""
        while True:
            logger.warning("producer replaced: transactional_id=%s reason=%s", self._transactional_id, lost)
            self.instance.retire(lost.hangs)
            if (hanging := abandoned_calls()) > ABANDONED_MOST:
                raise WorkerMustRestart(f"{hanging} producers hang inside librdkafka; only a new process frees them")
            self.closing.wait(_REPLACE_SECONDS[min(self._replaced_in_a_row, len(_REPLACE_SECONDS) - 1)])
            self._replaced_in_a_row += 1
            self._aborts_in_a_row = 0
            self.instance = self._make()
            try:
                self.initialise()
            except InstanceLost as again:
                lost = again
                continue
            logger.info("producer ready again: transactional_id=%s", self._transactional_id)
            return

    def decide(self, step: Step, *arguments: Any) -> None:
        """Make the call of `step` until it is decided.

        Raises TransactionAborted or its kind RecordsRefused where an abort must follow, InstanceLost, WorkerMustRestart for a
        fence, OutcomeUnknown on `closing`, BrokerUnavailable after `give_up_at`.
        """
        attempt = 0
        self._patience.begin(outage_before=not self._calm)
        while True:
            self._raise_if_over(step)
            error = self._result(step, self.instance.call(step.value, *arguments, CALL_SECONDS))
            if error is None:
                return
            self.instance.serve()
            text = f"{step.value}: {error.name()}: {error.str()}"
            demand = self.demand_of(step, error)
            if demand is Demand.FENCED:
                raise WorkerMustRestart(
                    f"another process took over the slot of {self._transactional_id} in the last {self._age_seconds:.1f} s "
                    f"({text}); give each process its own --slot"
                )
            if demand is Demand.ABORT:
                raise RecordsRefused(text) if is_refusal(error) else TransactionAborted(text)
            if demand is not Demand.AGAIN:
                raise InstanceLost(self._cause(error))
            if step is Step.INITIALISE and self._is_lost:
                raise InstanceLost(f"this client has lost Kafka, which others reach ({text})")
            logger.warning("call is repeated: transactional_id=%s call=%s", self._transactional_id, text)
            self.closing.wait(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
            attempt += 1

    def demand_of(self, step: Step, error: KafkaError) -> Demand:
        """What `error` demands now."""
        return demand_of(step, error, self._calm and self._age_seconds < self._timeout_seconds)

    def _result(self, step: Step, call: Future[Any]) -> KafkaError | None:
        """Wait for one call, watching whether it will ever return."""
        log_at = time.monotonic() + _LONG_SECONDS
        while True:
            try:
                error = call.exception(_TICK_SECONDS)
            except TimeoutError:
                self._watch(step, log_at)
                log_at = math.inf if time.monotonic() >= log_at else log_at
                continue
            if isinstance(error, KafkaException):
                found: KafkaError = error.args[0]
                return found
            if error is not None:
                raise error
            return None

    def _watch(self, step: Step, log_at: float) -> None:
        self._raise_if_over(step)
        probe, now = self.instance.probe(), time.monotonic()
        if now >= log_at:
            logger.warning(
                "call takes long: transactional_id=%s call=%s kafka=%s",
                *(self._transactional_id, step.value, probe.value),
            )
        if self._patience.is_over(now, self._age_seconds, probe) and step is not Step.INITIALISE:
            raise InstanceLost(f"{step.value} does not return; kafka {probe.value}", hangs=True)

    def _raise_if_over(self, step: Step) -> None:
        if self.closing.is_set():
            raise OutcomeUnknown(f"{step.value}: undecided when the worker stopped")
        if time.monotonic() > self.give_up_at:
            raise BrokerUnavailable(
                f"Kafka at {self._servers} has not admitted {self._transactional_id} in time; is it running, and may this "
                "user write with that transactional.id?"
            )

    @property
    def _is_lost(self) -> bool:
        return self._lost.observe(self.instance.probe() is Probe.ANSWERS, time.monotonic())

    @property
    def _age_seconds(self) -> float:
        # A suspended machine stops the monotonic clock, and the coordinator reads the wall clock.
        return max(time.monotonic() - self._began[0], time.time() - self._began[1])

    @property
    def _calm(self) -> bool:
        """Was Kafka reachable since the last success?"""
        return self.instance.outage_at < self._succeeded_at

    def _cause(self, error: KafkaError) -> str:
        if not is_fence(error):
            return f"{error.name()}: {error.str()}"
        if not self._calm:
            return f"Kafka was unreachable and has ended the transaction meanwhile ({error.name()})"
        return (
            f"the transaction took {self._age_seconds:.1f} s, and Kafka ends it after {self._timeout_seconds:.0f} s "
            f"({error.name()})"
        )
