"""Repeats the blocking calls of a slot's producer until their outcome is known, and replaces the producer if it is lost."""

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
from pipeline.kafka.slot_state import CallDeadline, Probe, Reaction, Step, is_fence, is_refusal, reaction_to
from pipeline.kafka.stuck import LostClient

logger = logging.getLogger(__name__)

CALL_SECONDS = 10.0
"""Timeout of one blocking call; the call is repeated until its outcome is known."""
_MARGIN_SECONDS = 2.0
"""The transaction coordinator looks for expired transactions periodically, so it may abort them this much later."""
_SETTLE_SECONDS = 3.0
"""After an outage, a call that is still pending after Kafka has responded for this long counts as hanging."""
_SETTLE_DOUBLINGS = 4
_TICK_SECONDS = 1.0
_LONG_SECONDS = 5.0
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_REPLACE_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)
_ABORTS_IN_A_ROW = 3
_RENEWING = threading.BoundedSemaphore(8)
"""Limits parallel renewals: after an outage, a deliverer of 50 connections renews 50 producers, each with its threads."""
_RENEWAL_SECONDS = 3.0
"""A producer that cannot be renewed within this time is kept; other renewals may wait for an unavailable coordinator."""


class InstanceLost(Exception):
    """The producer instance must be replaced. `hangs` is true if a call on it has not returned."""

    def __init__(self, reason: str, hangs: bool = False) -> None:
        super().__init__(reason)
        self.hangs = hangs


class ProducerCalls:
    """Makes blocking calls on the current producer instance, and decides when to replace it. Call it from one thread."""

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
        """Monotonic time at which to stop waiting for Kafka."""
        self._transactional_id = transactional_id
        self._timeout_seconds = timeout_seconds
        self._servers = servers
        self._make = make
        self._lost = LostClient(reaches)
        self._began = (0.0, 0.0)
        self._succeeded_at = time.monotonic()
        self._replaced_in_a_row = self._aborts_in_a_row = 0
        self._deadline = CallDeadline(timeout_seconds, _MARGIN_SECONDS, _SETTLE_SECONDS)
        self.instance = make()

    def begin(self) -> None:
        """Record that a transaction begins."""
        self._began = (time.monotonic(), time.time())
        self._deadline.settle_seconds = _SETTLE_SECONDS * 2 ** min(self._replaced_in_a_row, _SETTLE_DOUBLINGS)

    def succeeded(self, committed: bool) -> None:
        """Record that a transaction was committed or aborted."""
        self._succeeded_at = time.monotonic()
        self._aborts_in_a_row += 1
        if committed:
            self._replaced_in_a_row = self._aborts_in_a_row = 0

    @property
    def is_doubtful(self) -> bool:
        """True if several consecutive transactions were aborted, which the instance may have caused."""
        return self._aborts_in_a_row >= _ABORTS_IN_A_ROW

    def initialise(self) -> None:
        """Run `init_transactions`. Raises InstanceLost, BrokerUnavailable, or OutcomeUnknown on `closing`."""
        # A running call is never abandoned: its request, if sent late, would fence the next instance.
        self.decide(Step.INITIALISE)
        self._succeeded_at = time.monotonic()

    @contextlib.contextmanager
    def renewal_permit(self) -> Iterator[bool]:
        """Wait some seconds for a permit to renew the instance; yields whether it was granted. A process has few permits."""
        may = not self.closing.is_set() and _RENEWING.acquire(timeout=_RENEWAL_SECONDS)
        try:
            if may:
                self._replaced_in_a_row = 0  # a renewal is not a failure
            yield may
        finally:
            if may:
                _RENEWING.release()

    def replace(self, lost: InstanceLost) -> None:
        """Discard the instance and initialise new ones until one succeeds. Raises like `initialise`, except InstanceLost."""
        while True:
            logger.warning("producer replaced: transactional_id=%s reason=%s", self._transactional_id, lost)
            self.instance.retire(lost.hangs)
            if (hanging := abandoned_calls()) > ABANDONED_MOST:
                raise WorkerMustRestart(
                    f"{hanging} producers hang in librdkafka; only a restart of the process releases them"
                )
            self.closing.wait(_REPLACE_SECONDS[min(self._replaced_in_a_row, len(_REPLACE_SECONDS) - 1)])
            self._replaced_in_a_row += 1
            self._aborts_in_a_row = 0
            self.instance = self._make()
            try:
                self.initialise()
            except InstanceLost as again:
                lost = again
                continue
            logger.info("producer ready: transactional_id=%s", self._transactional_id)
            return

    def decide(self, step: Step, *arguments: Any) -> None:
        """Repeat the call of `step` until its outcome is known.

        Raises TransactionAborted (or its subclass RecordsRefused) if the transaction must be aborted, InstanceLost,
        WorkerMustRestart for a fence, OutcomeUnknown on `closing`, and BrokerUnavailable after `give_up_at`.
        """
        attempt = 0
        self._deadline.begin(outage_before=not self._was_reachable)
        while True:
            self._raise_if_over(step)
            error = self._result(step, self.instance.call(step.value, *arguments, CALL_SECONDS))
            if error is None:
                return
            self.instance.serve()
            text = f"{step.value}: {error.name()}: {error.str()}"
            reaction = self.reaction_to(step, error)
            if reaction is Reaction.FENCED:
                raise WorkerMustRestart(
                    f"another process took over the slot of {self._transactional_id} in the last {self._age_seconds:.1f} s "
                    f"({text}); give each process its own --slot"
                )
            if reaction is Reaction.ABORT:
                raise RecordsRefused(text) if is_refusal(error) else TransactionAborted(text)
            if reaction is not Reaction.RETRY:
                raise InstanceLost(self._cause(error))
            if step is Step.INITIALISE and self._is_lost:
                raise InstanceLost(f"this client cannot reach Kafka, but a new client can ({text})")
            logger.warning("call failed, will retry: transactional_id=%s call=%s", self._transactional_id, text)
            self.closing.wait(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
            attempt += 1

    def reaction_to(self, step: Step, error: KafkaError) -> Reaction:
        """Return how to react to `error`, given the age of the transaction and recent outages."""
        return reaction_to(step, error, self._was_reachable and self._age_seconds < self._timeout_seconds)

    def _result(self, step: Step, call: Future[Any]) -> KafkaError | None:
        """Wait for one call and return its error. Raises InstanceLost if the call hangs."""
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
                "call is slow: transactional_id=%s call=%s kafka=%s",
                *(self._transactional_id, step.value, probe.value),
            )
        if self._deadline.is_exceeded(now, self._age_seconds, probe) and step is not Step.INITIALISE:
            raise InstanceLost(f"{step.value} does not return, kafka={probe.value}", hangs=True)

    def _raise_if_over(self, step: Step) -> None:
        if self.closing.is_set():
            raise OutcomeUnknown(f"{step.value}: still pending when the worker stopped")
        if time.monotonic() > self.give_up_at:
            raise BrokerUnavailable(
                f"Kafka at {self._servers} did not initialise the producer {self._transactional_id} in time; check that Kafka "
                "is running, and that this principal may write with that transactional.id"
            )

    @property
    def _is_lost(self) -> bool:
        return self._lost.observe(self.instance.probe() is Probe.RESPONDS, time.monotonic())

    @property
    def _age_seconds(self) -> float:
        # The monotonic clock stops while the machine is suspended; the coordinator uses the wall clock.
        return max(time.monotonic() - self._began[0], time.time() - self._began[1])

    @property
    def _was_reachable(self) -> bool:
        """True if Kafka was reachable since the last success."""
        return self.instance.outage_at < self._succeeded_at

    def _cause(self, error: KafkaError) -> str:
        if not is_fence(error):
            return f"{error.name()}: {error.str()}"
        if not self._was_reachable:
            return f"Kafka was unreachable and has aborted the transaction meanwhile ({error.name()})"
        return (
            f"the transaction took {self._age_seconds:.1f} s, and Kafka aborts it after {self._timeout_seconds:.0f} s "
            f"({error.name()})"
        )
