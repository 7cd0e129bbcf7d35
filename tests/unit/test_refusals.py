"""A hit that alone is answered 401, 403 or 410 is set aside; a connection with wrong settings pauses (contract.md, section 6)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from pipeline.delivery.attempts import Attempts
from pipeline.delivery.batching import lanes_of
from pipeline.delivery.refusals import (
    KEEP_ORDER_SECONDS,
    MOST_AT_ONCE,
    MOST_IN_A_PAUSE,
    PER_MINUTE,
    Allowance,
    FinalOutcome,
    RefusalAction,
    Refusals,
    RefusalState,
    SetAside,
)
from pipeline.destination import Delivered, Event, Limits, Misconfigured, Outcome, Rejected, Retry, Verdict
from pipeline.errors import StaleBatch
from pipeline.telemetry.waiting import WAITING
from tests.guard import FakeGuard, stale_when

pytestmark = pytest.mark.anyio
_REFUSED = Misconfigured("http_403", "a firewall")


@pytest.fixture(autouse=True)
def _no_connection_is_paused() -> Iterator[None]:
    yield
    WAITING.end("c")


class Receiver:
    """Answers 403 to a request with a name that begins with "bad"; the clock advances only by sleeping."""

    def __init__(
        self, is_refused: Callable[[str], bool] = lambda name: name.startswith("bad"), draw: float = 1.0
    ) -> None:
        self.is_refused = is_refused
        self.now = 0.0
        self.requests: list[tuple[float, list[str]]] = []
        self.accepted: list[str] = []
        self.attempts = Attempts[str](
            *("c", self.send, 4, 3600.0, lambda: self.now, self.sleep, lambda: draw),
            refusals=Refusals(lambda: self.now),
        )

    async def send(self, names: Sequence[str]) -> Verdict:
        self.requests.append((self.now, list(names)))
        await asyncio.sleep(0)  # lets the other lanes send
        if any(map(self.is_refused, names)):
            return _REFUSED
        self.accepted += names
        return Delivered()

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def deliver(
        self, names: Sequence[str], *, events: int = 1, lanes: int = 4, users: int = 40, until: float = 1e6
    ) -> dict[str, FinalOutcome | None]:
        """Return the outcome of each name. The hits belong to `users` users in turn; the batch becomes stale at `until`."""
        events_of_names = [Event(name, b"{}") for name in names]
        split, _ = lanes_of(events_of_names, [n % users for n in range(len(names))], Limits(events=events), lanes)
        outcomes = await self.attempts.deliver(list(names), split, stale_when(lambda: self.now >= until))
        return dict(zip(names, outcomes, strict=True))


def good(count: int) -> list[str]:
    return [f"good-{number}" for number in range(count)]


@pytest.mark.parametrize("events", [1, 7, 100])
@pytest.mark.parametrize("at", [0, 20, 40])
async def test_single_refused_hit_delays_no_other_hit(at: int, events: int) -> None:
    receiver, names = Receiver(), good(40)
    names.insert(at, "bad")
    outcomes = await receiver.deliver(names, events=events)
    assert outcomes.pop("bad") == SetAside("http_403", "a firewall")
    assert set(outcomes.values()) == {Delivered()} and len(receiver.accepted) == len(set(receiver.accepted)) == 40
    assert receiver.now == 0.0 and "c" not in WAITING.connections


@pytest.mark.parametrize("events", [1, 10, 100])
@pytest.mark.parametrize("users", [1, 40])
@pytest.mark.parametrize("seed", range(5))
async def test_many_refused_hits_do_not_stop_good_ones(seed: int, users: int, events: int) -> None:
    names = [*good(200), *(f"bad-{number}" for number in range(50))]
    random.Random(seed).shuffle(names)
    receiver = Receiver()
    outcomes = await receiver.deliver(names, events=events, users=users)
    for name, outcome in outcomes.items():
        assert isinstance(outcome, Delivered if name.startswith("good") else SetAside), name
    assert len(receiver.accepted) == len(set(receiver.accepted))
    assert receiver.now < 30.0


async def test_other_hits_of_the_identity_keep_their_order() -> None:
    receiver = Receiver()
    await receiver.deliver(["good-0", "good-1", "bad", "good-2", "good-3"], users=1)
    assert receiver.accepted == ["good-0", "good-1", "good-2", "good-3"]


@pytest.mark.parametrize("events", [1, 10, 100])
@pytest.mark.parametrize("lanes", [1, 4])
async def test_wrong_key_pauses_after_few_requests_and_hits_stay_on_their_topic(lanes: int, events: int) -> None:
    receiver, names = Receiver(lambda name: True), good(400)
    outcomes = await receiver.deliver(names, events=events, lanes=lanes, until=50.0)
    assert sum(isinstance(outcome, SetAside) for outcome in outcomes.values()) <= 1
    assert set(outcomes.values()) <= {None, SetAside("http_403", "a firewall")}
    at_once = [sent for at, sent in receiver.requests if at == 0.0]
    assert len(at_once) <= 10 + 2 * lanes + 3
    assert WAITING.connections["c"].misconfigured
    receiver.is_refused = lambda name: False
    after = await receiver.deliver([name for name in names if outcomes[name] is None], events=events, lanes=lanes)
    assert set(after.values()) == {Delivered()} and "c" not in WAITING.connections


async def test_wrong_key_sets_aside_a_bounded_number_of_hits_in_a_day() -> None:
    receiver, names = Receiver(lambda name: True), good(2_000)
    outcomes = await receiver.deliver(names, until=86_400.0)
    aside = [name for name, outcome in outcomes.items() if outcome is not None]
    assert len(aside) <= 1 + MOST_IN_A_PAUSE and all(isinstance(outcomes[name], SetAside) for name in aside)
    assert len(receiver.requests) < 100 + 86_400 / 30


@pytest.mark.parametrize("count", [2, 3, 32, 60])
async def test_good_hit_passes_after_batches_of_only_refused_hits(count: int) -> None:
    """Batches without a good hit: the hits behind them are not read until these are settled."""
    receiver = Receiver()
    for number in range(0, count, 4):
        bad = [f"bad-{n}" for n in range(number, min(count, number + 4))]
        outcomes = await receiver.deliver(bad)
        assert all(isinstance(outcome, SetAside) for outcome in outcomes.values())
    assert await receiver.deliver(["good"]) == {"good": Delivered()}
    assert receiver.now < 240.0


@pytest.mark.parametrize("count", [9, 20, 32, 64, 96])
@pytest.mark.parametrize("draw", [0.3, 0.7, 1.0])
async def test_batch_of_only_refused_hits_keeps_its_order_for_at_most_a_minute(count: int, draw: float) -> None:
    receiver = Receiver(draw=draw)
    outcomes = await receiver.deliver([f"bad-{n}" for n in range(count)])
    assert all(isinstance(outcome, SetAside) for outcome in outcomes.values())
    assert receiver.now < KEEP_ORDER_SECONDS + count + 1.0
    assert await receiver.deliver(["good"]) == {"good": Delivered()}


async def test_refused_hits_beyond_the_bucket_delay_the_next_good_hit_by_hours_at_most() -> None:
    receiver = Receiver()
    for number in range(0, 300, 32):
        outcomes = await receiver.deliver([f"bad-{n}" for n in range(number, min(300, number + 32))])
        assert all(isinstance(outcome, SetAside) for outcome in outcomes.values())
    assert await receiver.deliver(["good"]) == {"good": Delivered()}
    assert receiver.now < 60 * 200 / PER_MINUTE + 1_000.0


async def test_refused_hits_in_half_of_the_traffic_do_not_stop_good_ones() -> None:
    """Many batches, far beyond the token bucket; some end with such hits while the hits behind them are not read yet."""
    receiver, draw = Receiver(), random.Random(7)
    for number in range(100):
        names = [f"{draw.choice(('good', 'bad'))}-{number}-{n}" for n in range(32)]
        outcomes = await receiver.deliver(names, users=7)
        assert all(isinstance(outcomes[name], Delivered) == name.startswith("good") for name in names)
        assert None not in outcomes.values()
    assert receiver.now < 180.0


async def test_refused_hits_beyond_the_bucket_are_rejected_with_the_reason() -> None:
    names = [name for pair in zip(good(150), [f"bad-{n}" for n in range(150)], strict=True) for name in pair]
    outcomes = await Receiver().deliver(names, lanes=1)
    kinds = [type(outcomes[f"bad-{n}"]) for n in range(150)]
    assert kinds.count(SetAside) == MOST_AT_ONCE and kinds.count(Rejected) == 150 - MOST_AT_ONCE
    last = outcomes["bad-149"]
    assert isinstance(last, Rejected) and last.reason == "misconfigured_alone"
    assert last.text == "http_403; not set aside, because too many hits were refused alone: a firewall"


async def test_wrong_key_on_one_of_four_backends_rejects_few_hits() -> None:
    """As behind a load balancer: a quarter of the requests is refused, whatever they contain."""
    draw = random.Random(7)
    outcomes = await Receiver(lambda name: draw.random() < 0.25).deliver(good(4_000))
    kinds = [type(outcome) for outcome in outcomes.values()]
    assert kinds.count(SetAside) >= MOST_AT_ONCE and kinds.count(Rejected) <= 4


async def test_probes_of_a_pause_rotate_over_the_hits() -> None:
    """The first may be refused for its text; probes with it alone would continue the pause after the repair."""
    receiver = Receiver(lambda name: name == "bad" or receiver.now < 30.0)
    outcomes = await receiver.deliver(["first", "bad", *good(20)], lanes=1)
    assert outcomes["bad"] == SetAside("http_403", "a firewall")
    assert [outcomes[name] for name in good(20)] == [Delivered()] * 20 and receiver.now < KEEP_ORDER_SECONDS


async def test_refused_event_of_an_accepted_request_is_set_aside() -> None:
    async def send(names: Sequence[str]) -> list[Outcome]:
        return [_REFUSED if name == "b" else Delivered() for name in names]

    attempts = Attempts[str]("c", send, 4, 3600.0, lambda: 0.0, refusals=Refusals(lambda: 0.0))
    assert await attempts.deliver(list("abc"), [[[0, 1, 2]]], FakeGuard()) == [
        Delivered(),
        SetAside("http_403", "a firewall"),
        Delivered(),
    ]


async def test_hit_accepted_outside_the_lanes_ends_the_pause() -> None:
    receiver = Receiver(lambda name: True)
    await receiver.deliver(good(20), until=40.0)
    assert WAITING.connections["c"].misconfigured
    receiver.is_refused = lambda name: False
    receiver.attempts.note_healthy()
    began = receiver.now
    assert "c" not in WAITING.connections
    assert set((await receiver.deliver(good(20))).values()) == {Delivered()} and receiver.now == began


async def test_requests_outside_the_lanes_keep_the_rate() -> None:
    receiver = Receiver()
    receiver.attempts = Attempts[str](
        *("c", receiver.send, 4, 3600.0, lambda: receiver.now, receiver.sleep), per_second=2.0
    )
    assert [await receiver.attempts.send_one(name, FakeGuard()) for name in good(5)] == [Delivered()] * 5
    assert [at for at, _ in receiver.requests] == [0.0, 0.5, 1.0, 1.5, 2.0]
    with pytest.raises(StaleBatch):
        await receiver.attempts.send_one("late", stale_when(lambda: True))
    assert len(receiver.requests) == 5


async def test_retry_after_outside_the_lanes_pauses_the_lanes() -> None:
    times: list[float] = []
    receiver = Receiver()

    async def send(names: Sequence[str]) -> Outcome:
        times.append(receiver.now)
        return Delivered() if len(times) > 1 else Retry("http_429", 60.0)

    attempts = Attempts[str]("c", send, 4, 3600.0, lambda: receiver.now, receiver.sleep, refusals=Refusals(lambda: 0.0))
    assert await attempts.send_one("a", FakeGuard()) == Retry("http_429", 60.0)
    assert attempts.is_down
    await attempts.deliver(["b"], [[[0]]], FakeGuard())
    assert times == [0.0, pytest.approx(60.0, abs=0.5)] and not attempts.is_down


async def test_blocking_proxy_pauses_the_connection_and_sets_no_hit_aside() -> None:
    blocked = Misconfigured("the proxy answers 407", is_answer=False)
    requests: list[float] = []
    now = 0.0

    async def send(names: Sequence[str]) -> Outcome:
        requests.append(now)
        return blocked if now < 3_600.0 else Delivered()

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    attempts = Attempts[str]("c", send, 1, 60.0, lambda: now, sleep, lambda: 1.0, refusals=Refusals(lambda: now))
    assert await attempts.deliver(good(5), [[[0, 1], [2], [3], [4]]], FakeGuard()) == [Delivered()] * 5
    assert len([at for at in requests if at < 3_600.0]) < 30


async def test_temporary_failure_does_not_count_as_a_refusal() -> None:
    answers = iter([_REFUSED, Retry("http_500"), Delivered(), _REFUSED, Delivered()])

    async def send(names: Sequence[str]) -> Outcome:
        return next(answers)

    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    attempts = Attempts[str]("c", send, 1, 3600.0, lambda: now, sleep, lambda: 1.0, refusals=Refusals(lambda: now))
    aside = SetAside("http_403", "a firewall")
    outcomes = await attempts.deliver(list("abcd"), [[[0], [1], [2], [3]]], FakeGuard())
    assert outcomes == [aside, Delivered(), aside, Delivered()] and now == 1.0


def test_second_refused_request_without_a_success_between_pauses_the_connection() -> None:
    refusals, batch = Refusals(lambda: 0.0), object()
    assert refusals.handle(batch, [0, 1, 2, 3], False) is RefusalAction.HALVE
    assert refusals.handle(batch, [0, 1], False) is RefusalAction.HALVE  # part of the first request
    assert refusals.handle(batch, [0], False) is RefusalAction.SETTLE_ALONE
    assert refusals.state is RefusalState.ONE
    assert refusals.handle(batch, [1], False) is RefusalAction.PAUSE
    assert refusals.state is RefusalState.MANY
    assert refusals.handle(batch, [2, 3], False) is RefusalAction.PAUSE
    refusals.note_healthy()
    assert refusals.handle(batch, [0], False) is RefusalAction.SETTLE_ALONE
    assert refusals.handle(object(), [0], False) is RefusalAction.PAUSE  # the same position of another batch


def test_repeated_refusal_from_an_earlier_pause_does_not_pause_again() -> None:
    refusals, batch = Refusals(lambda: 0.0), object()
    refusals.handle(batch, [0], False)
    refusals.handle(batch, [1], False)
    refusals.note_healthy()
    assert refusals.handle(batch, [0, 1], True) is RefusalAction.HALVE
    actions = [refusals.handle(batch, [number % 2], True) for number in range(110)]
    assert actions[:100] == [RefusalAction.SETTLE_ALONE] * 100  # after that, the settings may be wrong again
    assert refusals.state is RefusalState.MANY


def test_token_bucket_refills_over_time_and_is_bounded() -> None:
    now = 0.0
    allowance = Allowance(lambda: now)
    assert [allowance.take() for _ in range(MOST_AT_ONCE + 1)] == [True] * MOST_AT_ONCE + [False]
    now += 60.0
    assert [allowance.take() for _ in range(3)] == [True] * round(PER_MINUTE) + [False]
    now += 1e6
    assert sum(allowance.take() for _ in range(1_000)) == MOST_AT_ONCE
