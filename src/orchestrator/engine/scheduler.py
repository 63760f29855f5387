"""Who may call a model next: a bound on all open calls, a gate for each endpoint, and a queue before it."""

import asyncio
import math
from collections.abc import Callable
from typing import NamedTuple

from orchestrator.core.identity import InstanceRef
from orchestrator.errors import ModelError
from orchestrator.models.gate import Gate


class Slot(NamedTuple):
    """The right to have one call open."""

    endpoint: str
    started_s: float


class CallScheduler:
    """Grants slots: so many at a time in all, and for each endpoint as many as its gate lets through.

    Where there is none, instances wait in the endpoint's queue. One that waits is asked again when there is a
    slot: it may take its share of what is free, which is at least one, and takes its place behind all others
    if it wants more. So one with many subtasks cannot starve others (round robin; Nagle, RFC 970), and one
    throttled endpoint does not hold up another.
    """

    def __init__(self, limit: int, jitter: Callable[[], float]) -> None:
        """`jitter` gives a number from 0 to 1, another one each time."""
        self._limit = limit
        self._jitter = jitter
        self._free = limit
        self._gates: dict[str, Gate] = {}
        self._queues: dict[str, dict[InstanceRef, Callable[[], None]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._offer: tuple[str, InstanceRef] | None = None
        """The endpoint and the instance that is being asked, if one is: it comes before those that wait."""
        self._offered_slots = 0
        """How many slots it may acquire."""
        self._waiting_count = 0
        """How many wait that have not been asked this time."""
        self._is_dispatching = False
        """Whether those who wait are being asked, or will be once all has ended that ends in this pass of the
        loop: a request that comes now waits with them."""
        self._dispatch_handle: asyncio.Handle | None = None

    def acquire(self, endpoint: str, ref: InstanceRef, on_available: Callable[[], None]) -> Slot | None:
        """Acquire a slot if one is free; otherwise `on_available` is called, once, when one may be."""
        if endpoint not in self._gates:
            self._gates[endpoint], self._queues[endpoint] = Gate(self._limit), {}
        gate, queue = self._gates[endpoint], self._queues[endpoint]
        now_s = asyncio.get_running_loop().time()
        is_offered = self._offered_slots > 0 and (endpoint, ref) == self._offer
        wait_s = gate.wait_s(now_s, has_waited=is_offered or bool(queue))
        if self._free > 0 and wait_s == 0 and (is_offered or not (queue or self._is_dispatching)):
            self._offered_slots -= is_offered
            gate.begin(now_s)
            self._free -= 1
            return Slot(endpoint, now_s)
        queue[ref] = on_available
        if wait_s:
            self._schedule_dispatch(endpoint, wait_s)
        return None

    def release(self, slot: Slot, error: ModelError | None) -> None:
        """Release the slot of a call that has ended to those that wait."""
        self._free += 1
        gate = self._gates[slot.endpoint]
        now_s = asyncio.get_running_loop().time()
        if error and error.is_refusal:
            gate.refuse(slot.started_s, now_s, error.retry_after_s, self._jitter())
        elif error and error.is_fault:
            gate.fail(slot.started_s, now_s, error.retry_after_s, self._jitter())
        else:
            gate.end()
        if not self._is_dispatching and any(self._queues.values()):
            self._is_dispatching = True
            self._dispatch_handle = asyncio.get_running_loop().call_soon(self._dispatch)

    def obstacle(self, endpoint: str) -> str:
        """Return what an endpoint's calls wait for now."""
        wait_s = self._gates[endpoint].wait_s(asyncio.get_running_loop().time(), has_waited=True)
        if wait_s:
            return f"{endpoint} takes no more calls for now: it is called again in {math.ceil(wait_s)} s"
        if wait_s is None:
            return f"{endpoint} takes no more calls at the same time: another one has to end first"
        return (
            f"{self._limit} model calls are under way, as many as may be at a time "
            "(ORCHESTRATOR_MAX_CONCURRENT_CALLS)"
        )

    def withdraw(self, ref: InstanceRef) -> None:
        """Take an instance out of every queue: it wants no slot any more."""
        for queue in self._queues.values():
            queue.pop(ref, None)

    def close(self) -> None:
        """Grant no more slots."""
        self._free = -self._limit
        for pending in (*self._timers.values(), self._dispatch_handle):
            if pending:
                pending.cancel()

    def _dispatch(self) -> None:
        """Ask one instance of each endpoint's queue after the other, as long as slots are free.

        The endpoint that was served last comes last the next time.
        """
        self._is_dispatching = True
        self._waiting_count = sum(map(len, self._queues.values()))
        while [endpoint for endpoint in tuple(self._queues) if self._dispatch_one(endpoint)]:
            pass
        self._is_dispatching = False

    def _dispatch_one(self, endpoint: str) -> bool:
        gate, queue = self._gates[endpoint], self._queues[endpoint]
        if not queue or self._free <= 0:
            return False
        now_s = asyncio.get_running_loop().time()
        wait_s = gate.wait_s(now_s, has_waited=True)
        if wait_s:
            self._schedule_dispatch(endpoint, wait_s)
        if wait_s != 0:
            return False
        self._queues[endpoint] = self._queues.pop(endpoint)
        room = gate.room(now_s)
        self._offered_slots = max(
            1, min(self._free // self._waiting_count, room // min(self._waiting_count, len(queue)))
        )
        self._waiting_count = max(1, self._waiting_count - 1)
        ref = next(iter(queue))
        self._offer = (endpoint, ref)
        queue.pop(ref)()
        self._offered_slots = 0
        return True

    def _schedule_dispatch(self, endpoint: str, wait_s: float) -> None:
        if timer := self._timers.get(endpoint):
            timer.cancel()
        self._timers[endpoint] = asyncio.get_running_loop().call_later(wait_s, self._dispatch)
