"""The gate against simulated endpoints: a clock of the test's own, no network."""

import heapq
import random
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models.gate import FIRST_LIMIT, Gate

Endpoint = Callable[[float], float | None]
"""Given the time of a call: None, or the seconds of Retry-After of its refusal."""


def sliding(limit: int) -> Endpoint:
    """So many calls in any one second."""
    begun: list[float] = []

    def call(now_s: float) -> float | None:
        begun[:] = [begun_s for begun_s in begun if begun_s > now_s - 1]
        if len(begun) >= limit:
            return 1.0
        begun.append(now_s)
        return None

    return call


def bucket(limit: int) -> Endpoint:
    """So many calls a second, and as many saved up."""
    tokens, last_s = float(limit), 0.0

    def call(now_s: float) -> float | None:
        nonlocal tokens, last_s
        tokens, last_s = min(limit, tokens + (now_s - last_s) * limit), now_s
        if tokens < 1:
            return 1.0
        tokens -= 1
        return None

    return call


def storm(endpoint: Endpoint, calls: int, latency_s: float) -> tuple[float, float]:
    """Call as fast as the gate allows, refused calls again after Retry-After: refusals, and seconds."""
    gate, dice, number = Gate(most=64), random.Random(1), count()
    waiting, done, refusals, now_s = calls, 0, 0, 0.0
    agenda: list[tuple[float, int, Callable[[float], None]]] = []

    def at(time_s: float, then: Callable[[float], None]) -> None:
        heapq.heappush(agenda, (time_s, next(number), then))

    def ended(_: float) -> None:
        nonlocal done
        gate.end()
        done += 1

    def refused(begun_s: float, retry_after_s: float) -> Callable[[float], None]:
        def happen(now_s: float) -> None:
            gate.refuse(begun_s, now_s, retry_after_s, dice.random())
            at(now_s + retry_after_s, again)

        return happen

    def again(_: float) -> None:
        nonlocal waiting
        waiting += 1

    while done < calls:
        while waiting and gate.wait_s(now_s) == 0:
            gate.begin(now_s)
            waiting -= 1
            if (retry_after_s := endpoint(now_s)) is None:
                at(now_s + latency_s * dice.uniform(0.5, 1.5), ended)
            else:
                refusals += 1
                at(now_s + 0.01, refused(now_s, retry_after_s))
        if waiting and (wait_s := gate.wait_s(now_s)):
            at(now_s + wait_s, lambda _: None)
        now_s, _, then = heapq.heappop(agenda)
        then(now_s)
    return refusals, now_s


@pytest.mark.parametrize("latency_s", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("kind", [sliding, bucket])
def test_a_storm_wastes_little_and_takes_what_the_endpoint_allows(
    kind: Callable[[int], Endpoint], latency_s: float
) -> None:
    refusals, seconds = storm(kind(20), 500, latency_s)
    assert refusals / (500 + refusals) < 0.15
    assert 500 / seconds > 0.85 * 20


def test_an_endpoint_that_refuses_nothing_is_used_to_the_full() -> None:
    refusals, seconds = storm(lambda _: None, 2000, 0.1)
    assert refusals == 0
    assert seconds < 1.5 * 2000 / 64 * 0.1


def test_after_a_refusal_nothing_begins_before_its_time() -> None:
    gate = Gate(most=8)
    gate.begin(0)
    gate.refuse(0, 1, 30, 0)
    assert gate.wait_s(1) == 30
    assert gate.wait_s(30.5) == 0.5
    assert gate.wait_s(31) == 0


@pytest.mark.parametrize(
    ("retry_after_s", "jitter", "wait_s"),
    [(2, 0, 2), (2, 0.5, 2.1), (2, 1, 2.2), (600, 0.5, 600.5), (600, 1, 601), (None, 1, 0.275), (0, 1, 0)],
)
def test_a_gate_opens_a_little_later_than_told_and_never_earlier(
    retry_after_s: float | None, jitter: float, wait_s: float
) -> None:
    gate = Gate(most=8)
    gate.begin(0)
    gate.refuse(0, 0, retry_after_s, jitter)
    assert gate.wait_s(0) == pytest.approx(wait_s)


def test_the_refusals_of_one_moment_count_once() -> None:
    gate = Gate(most=8)
    for _ in range(3):
        gate.begin(0)
    gate.refuse(0, 1.0, 1, 0)
    gate.refuse(0, 1.5, 1, 0)
    assert gate.wait_s(2) == 0


def test_a_single_refusal_among_few_calls_sets_no_pace() -> None:
    gate = Gate(most=8)
    gate.begin(0)
    gate.refuse(0, 0.1, None, 0)
    for now_s in (1.0, 1.1, 1.2):
        assert gate.wait_s(now_s) == 0
        gate.begin(now_s)
        gate.end()


@given(st.lists(st.sampled_from(["begin", "end", "refuse", "later"]), max_size=200), st.integers(1, 20))
def test_no_more_are_open_than_allowed_and_there_is_always_a_way_on(steps: list[str], most: int) -> None:
    gate, now_s, begun = Gate(most=most), 0.0, list[float]()
    for step in steps:
        wait_s = gate.wait_s(now_s)
        match step:
            case "begin" if wait_s == 0:
                gate.begin(now_s)
                begun.append(now_s)
            case "end" if begun:
                begun.pop()
                gate.end()
            case "refuse" if begun:
                gate.refuse(begun.pop(), now_s, 0.5, 0.5)
            case _:
                now_s += 0.3
        assert len(begun) <= min(most, max(FIRST_LIMIT, most))
        assert begun or gate.wait_s(now_s) is not None  # with nothing open, time alone opens it


def test_a_refusal_long_after_the_last_call_leaves_a_rate() -> None:
    gate = Gate(most=64)
    for _ in range(9):
        gate.begin(0)
    gate.refuse(0, 0.1, None, 0)
    for _ in range(8):
        gate.end()
    now_s = 1.0
    for _ in range(9):
        now_s += gate.wait_s(now_s) or 0
        gate.begin(now_s)
    gate.refuse(now_s, now_s + 1.5, None, 0)
    for _ in range(8):
        gate.end()
    gate.begin(now_s + 2)
    wait_s = gate.wait_s(now_s + 2)
    assert wait_s is not None
    assert wait_s < 2
