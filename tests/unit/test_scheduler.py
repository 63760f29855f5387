import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.engine.scheduler import CallScheduler, Slot
from orchestrator.errors import ModelError
from orchestrator.models.gate import FIRST_LIMIT

REFUSED = ModelError("RATE_LIMITED", "slow down", retryable=True, retry_after_s=3600)


def ref(name: str) -> InstanceRef:
    """Return an instance's; `tenant/id`, or an id."""
    tenant, _, instance_id = name.rpartition("/")
    return InstanceRef(InstanceKey(tenant, instance_id), 1)


class Clients:
    """Instances that want slots at an endpoint, and take what they are given."""

    def __init__(self, limit: int, jitter: float = 0) -> None:
        self.scheduler = CallScheduler(limit, lambda: jitter)
        self.order: list[str] = []
        self.slots: list[Slot] = []
        self.wants: dict[str, int] = {}

    def request(self, name: str, count: int, endpoint: str = "here") -> None:
        self.wants[name] = count

        def ask() -> None:
            while self.wants[name] and (slot := self.scheduler.acquire(endpoint, ref(name), ask)):
                self.wants[name] -= 1
                self.order.append(name)
                self.slots.append(slot)

        ask()

    async def release(self, count: int = 1, error: ModelError | None = None) -> None:
        for _ in range(count):
            self.scheduler.release(self.slots.pop(0), error)
        await asyncio.sleep(0)


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    clients = Clients(1)
    yield clients
    clients.scheduler.close()


async def test_waiting_instances_acquire_slots_in_turn(clients: Clients) -> None:
    for name, wants in (("x", 1), ("a", 4), ("b", 2), ("c", 1)):
        clients.request(name, wants)
    for _ in range(7):
        await clients.release()
    assert "".join(clients.order) == "xabcabaa"


async def test_a_tenant_with_many_instances_holds_up_no_other(clients: Clients) -> None:
    clients.request("acme/0", 1)
    for number in range(1, 1000):
        clients.request(f"acme/{number}", 1)
    clients.request("initech/a", 2)
    clients.request("initech/b", 1)
    for _ in range(7):
        await clients.release()
    others = ["acme/1", "initech/a", "acme/2", "initech/b", "acme/3", "initech/a", "acme/4"]
    assert clients.order == ["acme/0", *others]


@given(limit=st.integers(1, 5), wants=st.lists(st.integers(0, 5), max_size=6))
async def test_open_slots_never_exceed_the_limit_and_every_request_is_granted(
    limit: int, wants: list[int]
) -> None:
    clients = Clients(limit)
    for name, want in enumerate(wants):
        clients.request(str(name), want)
    assert len(clients.order) == min(limit, sum(wants))
    for given_back in range(1, sum(wants) + 1):
        await clients.release()
        assert len(clients.order) == min(limit + given_back, sum(wants))
    clients.request("last", limit + 1)
    assert clients.wants["last"] == 1


async def test_an_instance_that_no_longer_wants_a_slot_blocks_no_other(clients: Clients) -> None:
    for name in ("x", "gone", "a"):
        clients.request(name, 1)
    clients.wants["gone"] = 0
    await clients.release()
    assert clients.order == ["x", "a"]


async def test_a_closed_scheduler_grants_no_slot(clients: Clients) -> None:
    clients.request("x", 1)
    clients.request("a", 1)
    clients.scheduler.close()
    await clients.release()
    clients.request("b", 1)
    assert clients.order == ["x"]


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
    clients = Clients(4)
    clients.request("a", 1)
    await clients.release(error=error)
    clients.request("b", 1)
    assert clients.order == (["a"] if is_closed else ["a", "b"])
    clients.scheduler.close()


async def test_an_endpoint_with_many_consecutive_failures_is_paused() -> None:
    clients = Clients(4)
    for _ in range(5):
        clients.request("a", 1)
        await clients.release(error=ModelError("OVERLOADED", "status 500", retryable=True))
    clients.request("b", 1)
    assert clients.order == ["a"] * 5
    clients.scheduler.close()


async def test_one_throttled_endpoint_does_not_stop_another() -> None:
    clients = Clients(4)
    clients.request("a", 1, "busy")
    await clients.release(error=REFUSED)
    clients.request("b", 1, "busy")
    clients.request("c", 1, "well")
    assert clients.order == ["a", "c"]
    clients.scheduler.close()


@pytest.mark.parametrize(("later_s", "order"), [(3600.4, ["a"]), (3600.5, ["a", "a"])])
async def test_an_endpoint_is_called_again_slightly_later_than_it_asked(
    monkeypatch: pytest.MonkeyPatch, later_s: float, order: list[str]
) -> None:
    clock_s = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock_s)
    clients = Clients(4, jitter=0.5)
    clients.request("a", 1)
    await clients.release(error=REFUSED)
    clock_s = later_s
    clients.request("a", 1)
    assert clients.order == order
    clients.scheduler.close()


async def test_an_instance_waiting_at_one_endpoint_gets_a_slot_released_at_another() -> None:
    clients = Clients(1)
    clients.request("a", 1, "one")
    clients.request("b", 1, "other")
    await clients.release()
    assert clients.order == ["a", "b"]


async def test_a_new_endpoint_is_probed_with_few_calls() -> None:
    clients = Clients(100)
    clients.request("a", 100)
    assert len(clients.order) == FIRST_LIMIT


async def test_an_endpoint_with_a_long_queue_does_not_starve_another() -> None:
    clients = Clients(1)
    clients.request("a", 9, "busy")
    clients.request("b", 9, "busy")
    clients.request("c", 1, "other")
    await clients.release()
    await clients.release()
    assert "c" in clients.order


async def test_free_slots_are_shared_among_waiting_instances() -> None:
    clients = Clients(6)
    for name, wants in (("x", 6), ("a", 9), ("b", 9)):
        clients.request(name, wants)
    await clients.release(6)
    assert "".join(clients.order[6:]) == "aaabbb"


async def test_a_request_at_another_endpoint_does_not_overtake_a_waiting_instance() -> None:
    clients = Clients(1)
    clients.request("x", 1)
    clients.request("a", 1)
    clients.scheduler.release(clients.slots.pop(), None)
    clients.request("b", 1, "other")
    await asyncio.sleep(0)
    assert clients.order == ["x", "a"]


async def test_an_instance_notified_at_one_endpoint_gets_only_its_share_at_another() -> None:
    clients = Clients(6)
    clients.request("x", 6)

    def ask_both() -> None:
        for endpoint in ("here", "other"):
            while slot := clients.scheduler.acquire(endpoint, ref("a"), ask_both):
                clients.order.append("a")
                clients.slots.append(slot)

    ask_both()
    clients.request("b", 9)
    await clients.release(6)
    assert clients.order[6:].count("b") == 2


async def test_a_refusal_about_one_model_does_not_affect_the_endpoints_other_models() -> None:
    clients = Clients(4)
    clients.request("a", 1, "here/big")
    await clients.release(error=REFUSED)
    clients.request("b", 1, "here/big")
    clients.request("c", 1, "here/small")
    assert clients.order == ["a", "c"]
    assert clients.scheduler.obstacle("here/big").startswith("here/big takes no more calls for now")
    clients.scheduler.close()


async def test_a_shared_refusal_closes_all_models_of_its_endpoint_and_no_other() -> None:
    clients = Clients(4)
    clients.request("a", 1, "here/big")
    shared = ModelError("RATE_LIMITED", "account", retryable=True, retry_after_s=3600, is_shared=True)
    await clients.release(error=shared)
    clients.request("b", 1, "here/big")
    clients.request("c", 1, "here/small")
    clients.request("d", 1, "other/small")
    assert clients.order == ["a", "d"]
    assert clients.scheduler.obstacle("here/small").startswith("here takes no more calls for now")
    clients.scheduler.close()


async def test_models_refused_together_are_taken_to_share_a_limit() -> None:
    clients = Clients(4)
    clients.request("a", 1, "here/big")
    clients.request("b", 1, "here/small")
    refused = ModelError("RATE_LIMITED", "slow", retryable=True, retry_after_s=3600)
    await clients.release(error=refused)
    await clients.release(error=refused)
    clients.request("c", 1, "here/third")
    clients.request("d", 1, "other/small")
    assert clients.order == ["a", "b", "d"]
    assert clients.scheduler.obstacle("here/third").startswith("here takes no more calls for now")
    clients.scheduler.close()


async def test_a_call_waiting_for_an_endpoint_is_not_overtaken_by_its_other_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_s = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock_s)
    clients = Clients(4)
    clients.request("a", 1, "here/big")
    shared = ModelError("RATE_LIMITED", "account", retryable=True, retry_after_s=60, is_shared=True)
    await clients.release(error=shared)
    clients.request("b", 1, "here/big")
    clock_s = 60.0
    clients.request("c", 1, "here/small")
    assert clients.order == ["a"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert clients.order[:2] == ["a", "b"]
    clients.scheduler.close()


async def test_models_that_are_no_longer_called_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock_s)
    clients = Clients(4)
    for number in range(1000):
        clock_s += 1
        clients.request("a", 1, f"here/{number}")
        await clients.release()
    assert len(clients.scheduler._lines) <= 2
    clients.scheduler.close()


async def test_withdrawn_instances_leave_every_queue() -> None:
    clients = Clients(1)
    clients.request("x", 1)
    for number in range(2000):
        clients.request(str(number), 1, "here/big")
        clients.scheduler.withdraw(ref(str(number)))
    assert not any(line.queue for line in clients.scheduler._lines.values())
