"""The gate against simulated endpoints: a clock of the test's own, no network."""

import heapq
import math
import random
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.limits import (
    RETRY_AFTER,
    Concurrency,
    FixedWindow,
    Limit,
    RetryAfter,
    SlidingWindow,
    TokenBucket,
    Unlimited,
)

from orchestrator.models.gate import FIRST_LIMIT, Gate

MAX_OPEN = 64


class Figures(NamedTuple):
    """What became of a burst of calls."""

    refused: float
    """The share of all calls that was refused."""
    per_s: float
    """How many calls a second were taken, from the second second on until nearly all had started."""
    seconds: float


class Simulation:
    """Clients that call one endpoint through a gate, and an endpoint that refuses what is over its limit.

    Calls reach the endpoint up to 20 ms after they began, and are answered after the latency, give or take a
    half. A refused call comes again by itself, as attempts do: after a second or more, or Retry-After.
    """

    def __init__(self, limit: Limit, latency_s: float, retry_after: RetryAfter, seed: int = 1) -> None:
        self.gate = Gate(max_open=MAX_OPEN)
        self.now_s = 0.0
        self.refuse_next = 0
        self.fail_every = 0
        self._limit, self._latency_s, self._retry_after = limit, latency_s, retry_after
        self._random = random.Random(seed)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._waiting: list[int] = []
        """How often each call that waits for the gate has been refused."""
        self._has_waited = False
        self._wake_s = 0.0
        self._pending = 0
        self._calls = self._refusals = 0
        self._accepted_s: list[float] = []

    def _after(self, wait_s: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now_s + wait_s, next(self._number), then))

    def _begin_all(self) -> None:
        while self._waiting and self.gate.wait_s(self.now_s, has_waited=self._has_waited) == 0:
            self.gate.begin(self.now_s)
            arrive = self._arrival(self.now_s, self._waiting.pop(0))
            self._after(self._random.uniform(0, 0.02), arrive)
        self._has_waited = bool(self._waiting)
        if self._waiting and (wait_s := self.gate.wait_s(self.now_s)):
            wake_s = self.now_s + wait_s
            if not self.now_s < self._wake_s <= wake_s:
                self._wake_s = wake_s
                self._after(wait_s, lambda: None)

    def _arrival(self, started_s: float, refused_before: int) -> Callable[[], None]:
        def arrive() -> None:
            self._calls += 1
            early_s = 1.0 if self.refuse_next else self._limit.try_acquire(self.now_s)
            if early_s is not None:
                self.refuse_next = max(0, self.refuse_next - 1)
                self._refusals += 1
                self._after(self._random.uniform(0.01, 0.04), lambda: refused(self._retry_after(early_s)))
                return
            self._accepted_s.append(self.now_s)
            fails = self.fail_every and not self._calls % self.fail_every
            self._after(self._latency_s * self._random.uniform(0.5, 1.5), failed if fails else ended)

        def refused(retry_after_s: float | None) -> None:
            self.gate.refuse(started_s, self.now_s, retry_after_s, self._random.random())
            again(retry_after_s or 0)

        def failed() -> None:
            self._limit.release()
            self.gate.fail(started_s, self.now_s, None, self._random.random())
            again(0)

        def again(wait_s: float) -> None:
            delay_s = 2**refused_before * self._random.uniform(0.5, 1)
            self._after(max(delay_s, wait_s), lambda: self._waiting.append(refused_before + 1))

        def ended() -> None:
            self._limit.release()
            self.gate.end()
            self._pending -= 1

        return arrive

    def call(self, calls: int) -> None:
        """Let so many calls be made at once, and wait until all are done."""
        self._waiting += [0] * calls
        self._pending += calls
        self._begin_all()
        while self._pending:
            self.now_s, _, then = heapq.heappop(self._timers)
            then()
            self._begin_all()

    def light_traffic(self) -> None:
        """Four instances with four subtasks each, one of whose calls is refused."""
        self.call(4)
        self.refuse_next = 1
        self.call(16)
        self.call(4)
        self.refuse_next = 0

    def burst(self, calls: int) -> Figures:
        """As `call`, with figures."""
        begin_s, calls_before, refused_before = self.now_s, self._calls, self._refusals
        self._accepted_s.clear()
        self.call(calls)
        refused = (self._refusals - refused_before) / (self._calls - calls_before)
        accepted_s = [accepted_s - begin_s for accepted_s in self._accepted_s][: math.ceil(0.96 * calls)]
        late = sum(accepted_s > 1 for accepted_s in accepted_s)
        return Figures(refused, late / (accepted_s[-1] - 1) if late else math.inf, self.now_s - begin_s)


ENDPOINTS: dict[str, Callable[[], Limit]] = {
    "40 in any second": lambda: SlidingWindow(40),
    "40 from the first call's second on": lambda: FixedWindow(40),
    "40 a second and 40 saved up": lambda: TokenBucket(40, 40),
    "20 in any second": lambda: SlidingWindow(20),
    "20 a second and 20 saved up": lambda: TokenBucket(20, 20),
    "10 in any second": lambda: SlidingWindow(10),
}


@pytest.mark.parametrize("latency_s", [0.05, 0.2, 1])
@pytest.mark.parametrize("retry_after", RETRY_AFTER)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_burst_after_light_traffic_and_a_refusal_reaches_the_endpoints_rate(
    endpoint: str, retry_after: str, latency_s: float
) -> None:
    for seed in range(2):
        for idle_s in (1, 60, 3600):
            simulation = Simulation(ENDPOINTS[endpoint](), latency_s, RETRY_AFTER[retry_after], seed)
            for case in range(3):
                simulation.light_traffic()
                simulation.now_s += idle_s
                figures = simulation.burst(200)
                context = (seed, idle_s, case, figures)
                assert figures.refused <= 0.1, context
                assert figures.per_s >= 0.8 * float(endpoint.split(maxsplit=1)[0]), context
                simulation.now_s += 1 + idle_s


@pytest.mark.parametrize("latency_s", [0.2, 1])
@pytest.mark.parametrize("retry_after", RETRY_AFTER)
@pytest.mark.parametrize("at_once", [4, 8])
def test_a_burst_reaches_the_endpoints_concurrency(at_once: int, retry_after: str, latency_s: float) -> None:
    for seed in range(2):
        simulation = Simulation(Concurrency(at_once), latency_s, RETRY_AFTER[retry_after], seed)
        for _ in range(3):
            simulation.light_traffic()
            simulation.now_s += 60
            figures = simulation.burst(200)
            assert figures.refused <= 0.1, (seed, figures)
            assert figures.per_s >= 0.8 * at_once / latency_s, (seed, figures)


@pytest.mark.parametrize("retry_after", RETRY_AFTER)
@pytest.mark.parametrize("burst", [10, 20, 80])
def test_a_burst_at_a_token_bucket_of_any_depth_is_not_throttled(burst: int, retry_after: str) -> None:
    for latency_s in (0.05, 0.2, 1):
        simulation = Simulation(TokenBucket(40, burst), latency_s, RETRY_AFTER[retry_after])
        for _ in range(3):
            simulation.light_traffic()
            simulation.now_s += 60
            figures = simulation.burst(400)
            assert figures.refused <= 0.1, (latency_s, figures)
            assert figures.per_s >= 0.4 * 40, (latency_s, figures)


@pytest.mark.parametrize("latency_s", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("endpoint", ["20 in any second", "20 a second and 20 saved up"])
def test_a_storm_wastes_little_and_reaches_the_endpoints_rate(endpoint: str, latency_s: float) -> None:
    figures = Simulation(ENDPOINTS[endpoint](), latency_s, RETRY_AFTER["whole seconds"]).burst(500)
    assert figures.refused < 0.05
    assert figures.per_s > 0.85 * 20


@pytest.mark.parametrize(("retry_after", "refused"), [("whole seconds", 0.1), ("none", 0.3), ("zero", 0.3)])
@pytest.mark.parametrize("latency_s", [1, 5])
def test_an_endpoint_with_a_limit_per_minute_is_called_at_its_rate(
    retry_after: str, refused: float, latency_s: float
) -> None:
    for calls in (10, 40):
        simulation = Simulation(SlidingWindow(calls, 60), latency_s, RETRY_AFTER[retry_after])
        figures = simulation.burst(5 * calls)
        assert figures.refused < refused
        assert figures.seconds < 1.5 * 4 * 60


def test_an_endpoint_that_refuses_nothing_is_used_fully() -> None:
    figures = Simulation(Unlimited(), 0.1, RETRY_AFTER["none"]).burst(2000)
    assert figures.refused == 0
    assert figures.seconds < 1.5 * 2000 / MAX_OPEN * 0.1


def saturated_gate() -> Gate:
    """A gate at which as many calls are open as may be at first, and another waits."""
    gate = Gate(max_open=MAX_OPEN)
    for _ in range(FIRST_LIMIT):
        assert gate.wait_s(0) == 0
        gate.begin(0)
    assert gate.wait_s(0)
    return gate


def test_isolated_faults_do_not_reduce_the_rate() -> None:
    well, faulty = (Simulation(Unlimited(), 0.1, RETRY_AFTER["none"]) for _ in range(2))
    faulty.fail_every = 20
    assert faulty.burst(2000).per_s > 0.9 * well.burst(2000).per_s


def test_five_consecutive_faults_close_the_gate_briefly_and_change_no_estimate() -> None:
    gate = Gate(max_open=MAX_OPEN)
    for number in range(5):
        assert gate.wait_s(number) == 0
        gate.begin(number)
        gate.fail(number, number + 0.5, None, jitter=0)
    assert gate.wait_s(4.5) == 0.25
    started = 0
    while gate.wait_s(6) == 0:
        gate.begin(6)
        started += 1
    assert started == FIRST_LIMIT


def test_a_fault_with_a_retry_time_closes_the_gate_until_then_and_changes_no_estimate() -> None:
    gate = saturated_gate()
    gate.fail(0, 0.1, 30, jitter=0)
    assert gate.wait_s(0.1) == 30
    for _ in range(FIRST_LIMIT - 1):
        gate.end()
    assert gate.wait_s(30.1, has_waited=True) == 0
    gate.begin(30.1)
    assert gate.room(31.1) == MAX_OPEN - 1


def test_an_answer_resets_the_count_of_faults() -> None:
    gate = Gate(max_open=MAX_OPEN)
    for number in range(20):
        assert gate.wait_s(number) == 0
        gate.begin(number)
        if number % 4:
            gate.fail(number, number + 0.5, None, jitter=0)
        else:
            gate.end()


@pytest.mark.parametrize("apart_s", [1.0, 60.0])
def test_a_day_of_sparse_calls_and_a_refusal_leave_no_lasting_estimate(apart_s: float) -> None:
    simulation = Simulation(SlidingWindow(40), 0.2, RETRY_AFTER["whole seconds"])
    for _ in range(int(24 * 3600 / apart_s / 10)):
        simulation.call(1)
        simulation.now_s += apart_s
    simulation.refuse_next = 1
    simulation.call(1)
    simulation.now_s += apart_s
    assert len(simulation.gate._recent_s) <= 1024
    figures = simulation.burst(200)
    assert figures.refused <= 0.1
    assert figures.per_s >= 0.8 * 40


def test_after_a_refusal_nothing_starts_before_the_retry_time() -> None:
    gate = Gate(max_open=8)
    gate.begin(0)
    gate.refuse(0, 1, 30, 0)
    assert gate.wait_s(1) == 30
    assert gate.wait_s(30.5) == 0.5
    assert gate.wait_s(31) == 0


@pytest.mark.parametrize(
    ("retry_after_s", "jitter", "wait_s"),
    [
        (2, 0, 2),
        (2, 0.5, 2.1),
        (2, 1, 2.2),
        (600, 0.5, 600.5),
        (600, 1, 601),
        (None, 1, 0.275),
        (0, 1, 0.275),
    ],
)
def test_a_gate_opens_slightly_later_than_asked_and_never_earlier(
    retry_after_s: float | None, jitter: float, wait_s: float
) -> None:
    gate = Gate(max_open=8)
    gate.begin(0)
    gate.refuse(0, 0, retry_after_s, jitter)
    assert gate.wait_s(0) == pytest.approx(wait_s)


def test_simultaneous_refusals_count_once() -> None:
    gate = Gate(max_open=8)
    for _ in range(3):
        gate.begin(0)
    gate.refuse(0, 1.0, 1, 0)
    gate.refuse(0, 1.5, 1, 0)
    assert gate.wait_s(2) == 0


def test_a_single_refusal_among_few_calls_sets_no_pace() -> None:
    gate = Gate(max_open=8)
    gate.begin(0)
    gate.refuse(0, 0.1, None, 0)
    for now_s in (1.0, 1.1, 1.2):
        assert gate.wait_s(now_s) == 0
        gate.begin(now_s)
        gate.end()


def test_estimates_from_before_a_wait_of_minutes_are_discarded() -> None:
    gate = saturated_gate()
    gate.refuse(0, 0.1, 600, 0)
    for _ in range(FIRST_LIMIT - 1):
        gate.end()
    assert gate.wait_s(0.1) == 600
    assert gate.wait_s(600.1, has_waited=True) == 0
    assert gate.room(601.1) == MAX_OPEN


def test_refusals_without_a_retry_time_are_backed_off_exponentially() -> None:
    gate, now_s, waits_s = Gate(max_open=8), 0.0, list[float]()
    for _ in range(20):
        gate.begin(now_s)
        gate.refuse(now_s, now_s, None, 0)
        wait_s = gate.wait_s(now_s)
        assert wait_s is not None
        waits_s.append(wait_s)
        now_s += wait_s
    assert waits_s[:3] == pytest.approx([0.25, 0.375, 0.5625])
    assert waits_s[-1] == 30


def test_after_a_refusal_a_single_call_probes_the_endpoint() -> None:
    gate = saturated_gate()
    gate.refuse(0, 0.1, 1, 0)
    for _ in range(FIRST_LIMIT - 1):
        gate.end()
    assert gate.wait_s(1.1, has_waited=True) == 0
    gate.begin(1.1)
    assert gate.wait_s(1.1, has_waited=True)


@given(
    st.lists(st.sampled_from(["begin", "end", "refuse", "fail", "later"]), max_size=200), st.integers(1, 20)
)
def test_open_calls_never_exceed_the_limit_and_the_gate_never_deadlocks(steps: list[str], most: int) -> None:
    gate, now_s, started = Gate(max_open=most), 0.0, list[float]()
    for step in steps:
        wait_s = gate.wait_s(now_s, has_waited=len(started) % 2 == 0)
        match step:
            case "begin" if wait_s == 0:
                gate.begin(now_s)
                started.append(now_s)
            case "end" if started:
                started.pop()
                gate.end()
            case "refuse" if started:
                gate.refuse(started.pop(), now_s, 0.5, 0.5)
            case "fail" if started:
                gate.fail(started.pop(), now_s, None, 0.5)
            case _:
                now_s += 0.3
        assert len(started) <= most
        assert started or gate.wait_s(now_s) is not None  # with nothing open, time alone opens it
