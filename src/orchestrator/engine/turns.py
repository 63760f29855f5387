"""Who may call a model next: a bound on all open calls, a gate for each endpoint, and a queue before it."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from orchestrator.errors import ModelError
from orchestrator.models.gate import Gate


class Turn(NamedTuple):
    """Leave to make one call."""

    endpoint: str
    begun_s: float


class Turns:
    """Grants turns, in all so many at a time and for each endpoint as many as its gate lets through.

    Where there is none, instances wait in the endpoint's queue. One that waits is asked again when there is a
    turn: it may take its share of what is free, which is at least one, and takes its place behind all others
    if it wants more. So one with many subtasks cannot starve others (round robin; Nagle, RFC 970), and one
    throttled endpoint does not hold up another.
    """

    def __init__(self, limit: int, jitter: Callable[[], float]) -> None:
        """`jitter` gives a number from 0 to 1, another one each time."""
        self._limit = limit
        self._jitter = jitter
        self._free = limit
        self._gates: dict[str, Gate] = {}
        self._queues: dict[str, dict[str, Callable[[], None]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._asked = ("", "")
        """The endpoint and the instance that is being asked, if one is: it comes before those that wait."""
        self._share = 0
        """How many turns it may take."""
        self._unasked = 0
        """How many wait that have not been asked this time."""
        self._is_serving = False
        """Whether those who wait are being asked, or will be once all has ended that ends in this pass of the
        loop: whoever comes now waits with them."""
        self._next: asyncio.Handle | None = None

    def take(self, endpoint: str, instance_id: str, ask_again: Callable[[], None]) -> Turn | None:
        """Take a turn if there is one; otherwise `ask_again` is called, once, when there may be."""
        if endpoint not in self._gates:
            self._gates[endpoint], self._queues[endpoint] = Gate(self._limit), {}
        gate, queue = self._gates[endpoint], self._queues[endpoint]
        now_s = asyncio.get_running_loop().time()
        is_asked = self._share > 0 and (endpoint, instance_id) == self._asked
        wait_s = gate.wait_s(now_s, has_waited=is_asked or bool(queue))
        if self._free > 0 and wait_s == 0 and (is_asked or not (queue or self._is_serving)):
            self._share -= is_asked
            gate.begin(now_s)
            self._free -= 1
            return Turn(endpoint, now_s)
        queue[instance_id] = ask_again
        if wait_s:
            self._serve_later(endpoint, wait_s)
        return None

    def give_back(self, turn: Turn, error: ModelError | None) -> None:
        """The call has ended; let whoever waits have the turn."""
        self._free += 1
        gate = self._gates[turn.endpoint]
        now_s = asyncio.get_running_loop().time()
        if error and error.is_refusal:
            gate.refuse(turn.begun_s, now_s, error.retry_after_s, self._jitter())
        elif error and error.is_fault:
            gate.fail(turn.begun_s, now_s, error.retry_after_s, self._jitter())
        else:
            gate.end()
        if not self._is_serving and any(self._queues.values()):
            self._is_serving = True
            self._next = asyncio.get_running_loop().call_soon(self._serve)

    def close(self) -> None:
        """Grant no more."""
        self._free = -self._limit
        for pending in (*self._timers.values(), self._next):
            if pending:
                pending.cancel()

    def _serve(self) -> None:
        """Ask one instance of each endpoint's queue after the other, as long as there are turns.

        The endpoint that was served last comes last the next time.
        """
        self._is_serving = True
        self._unasked = sum(map(len, self._queues.values()))
        while [endpoint for endpoint in tuple(self._queues) if self._serve_one(endpoint)]:
            pass
        self._is_serving = False

    def _serve_one(self, endpoint: str) -> bool:
        gate, queue = self._gates[endpoint], self._queues[endpoint]
        if not queue or self._free <= 0:
            return False
        now_s = asyncio.get_running_loop().time()
        wait_s = gate.wait_s(now_s, has_waited=True)
        if wait_s:
            self._serve_later(endpoint, wait_s)
        if wait_s != 0:
            return False
        self._queues[endpoint] = self._queues.pop(endpoint)
        room = gate.room(now_s)
        self._share = max(1, min(self._free // self._unasked, room // min(self._unasked, len(queue))))
        self._unasked = max(1, self._unasked - 1)
        instance_id = next(iter(queue))
        self._asked = (endpoint, instance_id)
        queue.pop(instance_id)()
        self._share = 0
        return True

    def _serve_later(self, endpoint: str, wait_s: float) -> None:
        if timer := self._timers.get(endpoint):
            timer.cancel()
        self._timers[endpoint] = asyncio.get_running_loop().call_later(wait_s, self._serve)
