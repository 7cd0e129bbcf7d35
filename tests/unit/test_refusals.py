"""A hit that alone is answered 401, 403 or 410 is set aside; a connection whose settings are wrong pauses (contract.md, section 6)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from pipeline.delivery.attempts import Attempts
from pipeline.delivery.batching import lanes_of
from pipeline.delivery.refusals import (
    KEEP_PLACES_SECONDS,
    MOST_AT_ONCE,
    MOST_IN_A_PAUSE,
    PER_MINUTE,
    Allowance,
    Decision,
    FinalOutcome,
    Refusals,
    SetAside,
    Standing,
)
from pipeline.destination import Delivered, Event, Limits, Misconfigured, Outcome, Rejected, Retry, Verdict
from pipeline.errors import StaleBatch
from pipeline.telemetry.waiting import WAITING
from tests.guard import FakeGuard, stale_when

pytestmark = pytest.mark.anyio
_REFUSED = Misconfigured("http_403", "a firewall")


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    yield
    WAITING.end("c")


class Receiver:
    """Answers 403 to a request with a name that begins with "bad"; the clock moves only by sleeping."""

    def __init__(
        self, is_refused: Callable[[str], bool] = lambda name: name.startswith("bad"), draw: float = 1.0
    ) -> None:
        self.is_refused = is_refused
        self.now = 0.0
        self.requests: list[tuple[float, list[str]]] = []
        self.taken: list[str] = []
        self.attempts = Attempts[str](
            *("c", self.send, 4, 3600.0, lambda: self.now, self.sleep, lambda: draw),
            refusals=Refusals(lambda: self.now),
        )

    async def send(self, names: Sequence[str]) -> Verdict:
        self.requests.append((self.now, list(names)))
        await asyncio.sleep(0)  # the other lanes send meanwhile
        if any(map(self.is_refused, names)):
            return _REFUSED
        self.taken += names
        return Delivered()

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def deliver(
        self, names: Sequence[str], *, events: int = 1, lanes: int = 4, users: int = 40, until: float = 1e6
    ) -> dict[str, FinalOutcome | None]:
        """By name its outcome. The hits are of so many users in turns, and the batch ends at `until` on the clock."""
        made = [Event(name, b"{}") for name in names]
        split, _ = lanes_of(made, [n % users for n in range(len(names))], Limits(events=events), lanes)
        outcomes = await self.attempts.deliver(list(names), split, stale_when(lambda: self.now >= until))
        return dict(zip(names, outcomes, strict=True))


def good(count: int) -> list[str]:
    return [f"good-{number}" for number in range(count)]


@pytest.mark.parametrize("events", [1, 7, 100])
@pytest.mark.parametrize("at", [0, 20, 40])
async def test_one_hit_that_a_firewall_refuses_costs_no_other_hit_a_moment(at: int, events: int) -> None:
    receiver, names = Receiver(), good(40)
    names.insert(at, "bad")
    outcomes = await receiver.deliver(names, events=events)
    assert outcomes.pop("bad") == SetAside("http_403", "a firewall")
    assert set(outcomes.values()) == {Delivered()} and len(receiver.taken) == len(set(receiver.taken)) == 40
    assert receiver.now == 0.0 and "c" not in WAITING.connections


@pytest.mark.parametrize("events", [1, 10, 100])
@pytest.mark.parametrize("users", [1, 40])
@pytest.mark.parametrize("seed", range(5))
async def test_many_such_hits_among_good_ones_stop_nobody(seed: int, users: int, events: int) -> None:
    names = [*good(200), *(f"bad-{number}" for number in range(50))]
    random.Random(seed).shuffle(names)
    receiver = Receiver()
    outcomes = await receiver.deliver(names, events=events, users=users)
    for name, outcome in outcomes.items():
        assert isinstance(outcome, Delivered if name.startswith("good") else SetAside), name
    assert len(receiver.taken) == len(set(receiver.taken))
    assert receiver.now < 30.0


async def test_the_others_of_one_identity_keep_their_order() -> None:
    receiver = Receiver()
    await receiver.deliver(["good-0", "good-1", "bad", "good-2", "good-3"], users=1)
    assert receiver.taken == ["good-0", "good-1", "good-2", "good-3"]


@pytest.mark.parametrize("events", [1, 10, 100])
@pytest.mark.parametrize("lanes", [1, 4])
async def test_a_wrong_key_pauses_after_few_requests_and_its_hits_keep_their_places(lanes: int, events: int) -> None:
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


async def test_a_wrong_key_keeps_all_but_a_bounded_number_in_place_for_a_day() -> None:
    receiver, names = Receiver(lambda name: True), good(2_000)
    outcomes = await receiver.deliver(names, until=86_400.0)
    aside = [name for name, outcome in outcomes.items() if outcome is not None]
    assert len(aside) <= 1 + MOST_IN_A_PAUSE and all(isinstance(outcomes[name], SetAside) for name in aside)
    assert len(receiver.requests) < 100 + 86_400 / 30


@pytest.mark.parametrize("count", [2, 3, 32, 60])
async def test_such_hits_alone_in_a_quiet_hour_let_the_next_good_hit_through(count: int) -> None:
    """Batch after batch without a good hit: what stands behind them is not read before they are out of the way."""
    receiver = Receiver()
    for number in range(0, count, 4):
        bad = [f"bad-{n}" for n in range(number, min(count, number + 4))]
        outcomes = await receiver.deliver(bad)
        assert all(isinstance(outcome, SetAside) for outcome in outcomes.values())
    assert await receiver.deliver(["good"]) == {"good": Delivered()}
    assert receiver.now < 240.0


@pytest.mark.parametrize("count", [9, 20, 32, 64, 96])
@pytest.mark.parametrize("draw", [0.3, 0.7, 1.0])
async def test_a_batch_of_such_hits_alone_keeps_its_places_for_a_minute_and_no_longer(count: int, draw: float) -> None:
    receiver = Receiver(draw=draw)
    outcomes = await receiver.deliver([f"bad-{n}" for n in range(count)])
    assert all(isinstance(outcome, SetAside) for outcome in outcomes.values())
    assert receiver.now < KEEP_PLACES_SECONDS + count + 1.0
    assert await receiver.deliver(["good"]) == {"good": Delivered()}


async def test_more_such_hits_in_a_row_than_are_set_aside_at_once_hold_the_next_good_hit_up_and_no_longer_than_hours() -> (
    None
):
    receiver = Receiver()
    for number in range(0, 300, 32):
        outcomes = await receiver.deliver([f"bad-{n}" for n in range(number, min(300, number + 32))])
        assert all(isinstance(outcome, SetAside) for outcome in outcomes.values())
    assert await receiver.deliver(["good"]) == {"good": Delivered()}
    assert receiver.now < 60 * 200 / PER_MINUTE + 1_000.0


async def test_who_sends_as_many_such_hits_as_others_send_good_ones_stops_nobody() -> None:
    """Batch after batch, far beyond the allowance: some end with such hits, and those behind them are not read yet."""
    receiver, draw = Receiver(), random.Random(7)
    for number in range(100):
        names = [f"{draw.choice(('good', 'bad'))}-{number}-{n}" for n in range(32)]
        outcomes = await receiver.deliver(names, users=7)
        assert all(isinstance(outcomes[name], Delivered) == name.startswith("good") for name in names)
        assert None not in outcomes.values()
    assert receiver.now < 180.0


async def test_hits_beyond_the_allowance_are_dead_letters_with_the_reason() -> None:
    names = [name for pair in zip(good(150), [f"bad-{n}" for n in range(150)], strict=True) for name in pair]
    outcomes = await Receiver().deliver(names, lanes=1)
    kinds = [type(outcomes[f"bad-{n}"]) for n in range(150)]
    assert kinds.count(SetAside) == MOST_AT_ONCE and kinds.count(Rejected) == 150 - MOST_AT_ONCE
    last = outcomes["bad-149"]
    assert isinstance(last, Rejected) and last.reason == "misconfigured_alone"
    assert last.text == "http_403; too many hits are answered so alone to set this one aside: a firewall"


async def test_one_backend_of_four_with_a_wrong_key_costs_hardly_a_hit() -> None:
    """As behind a load balancer: a fourth of the requests is refused, whatever they hold."""
    draw = random.Random(7)
    outcomes = await Receiver(lambda name: draw.random() < 0.25).deliver(good(4_000))
    kinds = [type(outcome) for outcome in outcomes.values()]
    assert kinds.count(SetAside) >= MOST_AT_ONCE and kinds.count(Rejected) <= 4


async def test_probes_of_a_pause_ask_one_hit_after_the_other() -> None:
    """The first may be refused for its text, and then it alone would keep the pause after the mend."""
    receiver = Receiver(lambda name: name == "bad" or receiver.now < 30.0)
    outcomes = await receiver.deliver(["first", "bad", *good(20)], lanes=1)
    assert outcomes["bad"] == SetAside("http_403", "a firewall")
    assert [outcomes[name] for name in good(20)] == [Delivered()] * 20 and receiver.now < KEEP_PLACES_SECONDS


async def test_a_refusal_beside_hits_that_were_taken_stands_alone() -> None:
    async def send(names: Sequence[str]) -> list[Outcome]:
        return [_REFUSED if name == "b" else Delivered() for name in names]

    attempts = Attempts[str]("c", send, 4, 3600.0, lambda: 0.0, refusals=Refusals(lambda: 0.0))
    assert await attempts.deliver(list("abc"), [[[0, 1, 2]]], FakeGuard()) == [
        Delivered(),
        SetAside("http_403", "a firewall"),
        Delivered(),
    ]


async def test_a_hit_that_is_taken_beside_the_lanes_ends_the_pause() -> None:
    receiver = Receiver(lambda name: True)
    await receiver.deliver(good(20), until=40.0)
    assert WAITING.connections["c"].misconfigured
    receiver.is_refused = lambda name: False
    receiver.attempts.answered()
    began = receiver.now
    assert "c" not in WAITING.connections
    assert set((await receiver.deliver(good(20))).values()) == {Delivered()} and receiver.now == began


async def test_what_is_asked_beside_the_lanes_keeps_their_rate() -> None:
    receiver = Receiver()
    receiver.attempts = Attempts[str](
        *("c", receiver.send, 4, 3600.0, lambda: receiver.now, receiver.sleep), per_second=2.0
    )
    assert [await receiver.attempts.ask(name, FakeGuard()) for name in good(5)] == [Delivered()] * 5
    assert [at for at, _ in receiver.requests] == [0.0, 0.5, 1.0, 1.5, 2.0]
    with pytest.raises(StaleBatch):
        await receiver.attempts.ask("late", stale_when(lambda: True))
    assert len(receiver.requests) == 5


async def test_a_retry_after_beside_the_lanes_holds_for_them_too() -> None:
    times: list[float] = []
    receiver = Receiver()

    async def send(names: Sequence[str]) -> Outcome:
        times.append(receiver.now)
        return Delivered() if len(times) > 1 else Retry("http_429", 60.0)

    attempts = Attempts[str]("c", send, 4, 3600.0, lambda: receiver.now, receiver.sleep, refusals=Refusals(lambda: 0.0))
    assert await attempts.ask("a", FakeGuard()) == Retry("http_429", 60.0)
    assert attempts.is_down
    await attempts.deliver(["b"], [[[0]]], FakeGuard())
    assert times == [0.0, pytest.approx(60.0, abs=0.5)] and not attempts.is_down


async def test_what_the_destination_has_not_seen_pauses_the_connection_and_sets_no_hit_aside() -> None:
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


async def test_other_failures_say_nothing_about_the_key() -> None:
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


def test_the_second_request_that_is_refused_without_a_success_between_is_the_connections() -> None:
    refusals, batch = Refusals(lambda: 0.0), object()
    assert refusals.refused(batch, [0, 1, 2, 3], False) is Decision.HALVE
    assert refusals.refused(batch, [0, 1], False) is Decision.HALVE  # a part of it
    assert refusals.refused(batch, [0], False) is Decision.STANDS_ALONE
    assert refusals.standing is Standing.ONE
    assert refusals.refused(batch, [1], False) is Decision.PAUSE
    assert refusals.standing is Standing.MANY
    assert refusals.refused(batch, [2, 3], False) is Decision.PAUSE
    refusals.answered()
    assert refusals.refused(batch, [0], False) is Decision.STANDS_ALONE
    assert refusals.refused(object(), [0], False) is Decision.PAUSE  # the same position of another batch


def test_what_was_refused_in_a_former_pause_is_no_news() -> None:
    refusals, batch = Refusals(lambda: 0.0), object()
    refusals.refused(batch, [0], False)
    refusals.refused(batch, [1], False)
    refusals.answered()
    assert refusals.refused(batch, [0, 1], True) is Decision.HALVE
    decisions = [refusals.refused(batch, [number % 2], True) for number in range(110)]
    assert decisions[:100] == [Decision.STANDS_ALONE] * 100  # and then the settings may be wrong again
    assert refusals.standing is Standing.MANY


def test_the_allowance_is_refilled_in_time_and_bounded() -> None:
    now = 0.0
    allowance = Allowance(lambda: now)
    assert [allowance.take() for _ in range(MOST_AT_ONCE + 1)] == [True] * MOST_AT_ONCE + [False]
    now += 60.0
    assert [allowance.take() for _ in range(3)] == [True] * round(PER_MINUTE) + [False]
    now += 1e6
    assert sum(allowance.take() for _ in range(1_000)) == MOST_AT_ONCE
