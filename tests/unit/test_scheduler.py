import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.scheduler import CallScheduler, Slot
from orchestrator.errors import ModelError
from orchestrator.models.gate import FIRST_LIMIT

REFUSED = ModelError("RATE_LIMITED", "slow down", retryable=True, retry_after_s=3600)


class Crowd:
    """Instances that want slots at an endpoint, and take what they are given."""

    def __init__(self, limit: int, jitter: float = 0) -> None:
        self.scheduler = CallScheduler(limit, lambda: jitter)
        self.order: list[str] = []
        self.held: list[Slot] = []
        self.wants: dict[str, int] = {}

    def want(self, name: str, count: int, endpoint: str = "here") -> None:
        self.wants[name] = count

        def ask() -> None:
            while self.wants[name] and (slot := self.scheduler.acquire(endpoint, name, ask)):
                self.wants[name] -= 1
                self.order.append(name)
                self.held.append(slot)

        ask()

    async def release(self, count: int = 1, error: ModelError | None = None) -> None:
        for _ in range(count):
            self.scheduler.release(self.held.pop(0), error)
        await asyncio.sleep(0)


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd(1)
    yield crowd
    crowd.scheduler.close()


async def test_waiting_instances_acquire_slots_in_turn(crowd: Crowd) -> None:
    for name, wants in (("x", 1), ("a", 4), ("b", 2), ("c", 1)):
        crowd.want(name, wants)
    for _ in range(7):
        await crowd.release()
    assert "".join(crowd.order) == "xabcabaa"


@given(limit=st.integers(1, 5), wants=st.lists(st.integers(0, 5), max_size=6))
async def test_open_slots_never_exceed_the_limit_and_every_request_is_granted(
    limit: int, wants: list[int]
) -> None:
    crowd = Crowd(limit)
    for name, want in enumerate(wants):
        crowd.want(str(name), want)
    assert len(crowd.order) == min(limit, sum(wants))
    for given_back in range(1, sum(wants) + 1):
        await crowd.release()
        assert len(crowd.order) == min(limit + given_back, sum(wants))
    crowd.want("last", limit + 1)
    assert crowd.wants["last"] == 1


async def test_an_instance_that_no_longer_wants_a_slot_blocks_no_other(crowd: Crowd) -> None:
    for name in ("x", "gone", "a"):
        crowd.want(name, 1)
    crowd.wants["gone"] = 0
    await crowd.release()
    assert crowd.order == ["x", "a"]


async def test_a_closed_scheduler_grants_no_slot(crowd: Crowd) -> None:
    crowd.want("x", 1)
    crowd.want("a", 1)
    crowd.scheduler.close()
    await crowd.release()
    crowd.want("b", 1)
    assert crowd.order == ["x"]


@pytest.mark.parametrize(
    ("error", "is_closed"),
    [
        (ModelError("RATE_LIMITED", "slow down", retryable=True), True),
        (ModelError("RATE_LIMITED", "the account is empty", retryable=False), False),
        (ModelError("OVERLOADED", "status 503", retryable=True, retry_after_s=9), True),
        (ModelError("OVERLOADED", "status 503", retryable=True, retry_after_s=0), False),
        (ModelError("OVERLOADED", "status 500", retryable=True), False),
        (ModelError("OUTPUT_INVALID", "no JSON", retryable=True), False),
    ],
)
async def test_an_error_about_too_many_calls_closes_the_endpoint(error: ModelError, is_closed: bool) -> None:
    crowd = Crowd(4)
    crowd.want("a", 1)
    await crowd.release(error=error)
    crowd.want("b", 1)
    assert crowd.order == (["a"] if is_closed else ["a", "b"])
    crowd.scheduler.close()


async def test_an_endpoint_with_many_consecutive_failures_is_paused() -> None:
    crowd = Crowd(4)
    for _ in range(5):
        crowd.want("a", 1)
        await crowd.release(error=ModelError("OVERLOADED", "status 500", retryable=True))
    crowd.want("b", 1)
    assert crowd.order == ["a"] * 5
    crowd.scheduler.close()


async def test_one_throttled_endpoint_does_not_stop_another() -> None:
    crowd = Crowd(4)
    crowd.want("a", 1, "busy")
    await crowd.release(error=REFUSED)
    crowd.want("b", 1, "busy")
    crowd.want("c", 1, "well")
    assert crowd.order == ["a", "c"]
    crowd.scheduler.close()


@pytest.mark.parametrize(("later_s", "order"), [(3600.4, ["a"]), (3600.5, ["a", "a"])])
async def test_an_endpoint_is_called_again_slightly_later_than_it_asked(
    monkeypatch: pytest.MonkeyPatch, later_s: float, order: list[str]
) -> None:
    clock_s = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock_s)
    crowd = Crowd(4, jitter=0.5)
    crowd.want("a", 1)
    await crowd.release(error=REFUSED)
    clock_s = later_s
    crowd.want("a", 1)
    assert crowd.order == order
    crowd.scheduler.close()


async def test_an_instance_waiting_at_one_endpoint_gets_a_slot_released_at_another() -> None:
    crowd = Crowd(1)
    crowd.want("a", 1, "one")
    crowd.want("b", 1, "other")
    await crowd.release()
    assert crowd.order == ["a", "b"]


async def test_a_new_endpoint_is_probed_with_few_calls() -> None:
    crowd = Crowd(100)
    crowd.want("a", 100)
    assert len(crowd.order) == FIRST_LIMIT


async def test_an_endpoint_with_a_long_queue_does_not_starve_another() -> None:
    crowd = Crowd(1)
    crowd.want("a", 9, "busy")
    crowd.want("b", 9, "busy")
    crowd.want("c", 1, "other")
    await crowd.release()
    await crowd.release()
    assert "c" in crowd.order


async def test_free_slots_are_shared_among_waiting_instances() -> None:
    crowd = Crowd(6)
    for name, wants in (("x", 6), ("a", 9), ("b", 9)):
        crowd.want(name, wants)
    await crowd.release(6)
    assert "".join(crowd.order[6:]) == "aaabbb"


async def test_a_request_at_another_endpoint_does_not_overtake_a_waiting_instance() -> None:
    crowd = Crowd(1)
    crowd.want("x", 1)
    crowd.want("a", 1)
    crowd.scheduler.release(crowd.held.pop(), None)
    crowd.want("b", 1, "other")
    await asyncio.sleep(0)
    assert crowd.order == ["x", "a"]


async def test_an_instance_notified_at_one_endpoint_gets_only_its_share_at_another() -> None:
    crowd = Crowd(6)
    crowd.want("x", 6)

    def ask_both() -> None:
        for endpoint in ("here", "other"):
            while slot := crowd.scheduler.acquire(endpoint, "a", ask_both):
                crowd.order.append("a")
                crowd.held.append(slot)

    ask_both()
    crowd.want("b", 9)
    await crowd.release(6)
    assert crowd.order[6:].count("b") == 2


async def test_a_refusal_about_one_model_does_not_affect_the_endpoints_other_models() -> None:
    crowd = Crowd(4)
    crowd.want("a", 1, "here/big")
    await crowd.release(error=REFUSED)
    crowd.want("b", 1, "here/big")
    crowd.want("c", 1, "here/small")
    assert crowd.order == ["a", "c"]
    assert crowd.scheduler.obstacle("here/big").startswith("here/big takes no more calls for now")
    crowd.scheduler.close()


async def test_a_shared_refusal_closes_all_models_of_its_endpoint_and_no_other() -> None:
    crowd = Crowd(4)
    crowd.want("a", 1, "here/big")
    shared = ModelError("RATE_LIMITED", "account", retryable=True, retry_after_s=3600, is_shared=True)
    await crowd.release(error=shared)
    crowd.want("b", 1, "here/big")
    crowd.want("c", 1, "here/small")
    crowd.want("d", 1, "other/small")
    assert crowd.order == ["a", "d"]
    assert crowd.scheduler.obstacle("here/small").startswith("here takes no more calls for now")
    crowd.scheduler.close()


async def test_models_refused_together_are_taken_to_share_a_limit() -> None:
    crowd = Crowd(4)
    crowd.want("a", 1, "here/big")
    crowd.want("b", 1, "here/small")
    refused = ModelError("RATE_LIMITED", "slow", retryable=True, retry_after_s=3600)
    await crowd.release(error=refused)
    await crowd.release(error=refused)
    crowd.want("c", 1, "here/third")
    crowd.want("d", 1, "other/small")
    assert crowd.order == ["a", "b", "d"]
    assert crowd.scheduler.obstacle("here/third").startswith("here takes no more calls for now")
    crowd.scheduler.close()


async def test_a_call_waiting_for_an_endpoint_is_not_overtaken_by_its_other_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_s = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock_s)
    crowd = Crowd(4)
    crowd.want("a", 1, "here/big")
    shared = ModelError("RATE_LIMITED", "account", retryable=True, retry_after_s=60, is_shared=True)
    await crowd.release(error=shared)
    crowd.want("b", 1, "here/big")
    clock_s = 60.0
    crowd.want("c", 1, "here/small")
    assert crowd.order == ["a"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert crowd.order[:2] == ["a", "b"]
    crowd.scheduler.close()


async def test_models_that_are_no_longer_called_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock_s)
    crowd = Crowd(4)
    for number in range(1000):
        clock_s += 1
        crowd.want("a", 1, f"here/{number}")
        await crowd.release()
    assert len(crowd.scheduler._lines) <= 2
    crowd.scheduler.close()


async def test_withdrawn_instances_leave_every_queue() -> None:
    crowd = Crowd(1)
    crowd.want("x", 1)
    for number in range(2000):
        crowd.want(str(number), 1, "here/big")
        crowd.scheduler.withdraw(str(number))
    assert not any(line.queue for line in crowd.scheduler._lines.values())
