"""Who may call a model next: a bound on all open calls, gates of models and endpoints, and queues."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from orchestrator.core.identity import InstanceRef
from orchestrator.engine.fair_queue import FairQueue
from orchestrator.engine.observer import NO_OBSERVER, Observer
from orchestrator.errors import ModelError
from orchestrator.models.gate import Gate

_TOGETHER_S: Final = 1.0
"""Refusals of two models within this time come from a limit that they share."""
_SHARED_S: Final = 120.0
"""How long that is believed."""


class Slot(NamedTuple):
    """The right to have one call open."""

    model: str
    started_s: float


class _Line(NamedTuple):
    """The instances that wait to call one model, and the gates that its calls pass."""

    gates: tuple[Gate, Gate]
    """The model's own, and that of its endpoint, which all its models share."""
    queue: FairQueue[Callable[[], None]]

    def wait_s(self, now_s: float, *, has_waited: bool) -> float | None:
        """Return how long until a call may begin, as `Gate.wait_s`: of the first gate that is not open."""
        own, shared = self.gates
        wait_s = own.wait_s(now_s, has_waited=has_waited)
        return wait_s if wait_s != 0 else shared.wait_s(now_s, has_waited=has_waited)


class GateStatus(NamedTuple):
    """How a gate stands."""

    name: str
    """Its model, `provider/model`, or its endpoint, which is the provider's name."""
    limit: int
    """How many calls may be open."""
    per_s: float | None
    """How many may begin in a second; None: there is no such bound."""
    is_closed: bool
    open_calls: int
    waiting: int
    """How many instances wait for a call."""


class CallScheduler:
    """Grants slots: so many at a time in all, and for each model as many as two gates let through.

    A model is named `endpoint/model`. Where there is no slot, instances wait in the model's queue. One that
    waits is asked again when there is a slot: it may take its share of what is free, at least one, and
    takes its place behind all others if it wants more. So one with many subtasks cannot starve others, nor
    one tenant with many instances (see FairQueue), and one throttled model does not hold up another: what its
    endpoint says of that model closes the model's gate, what it says of all calls closes the endpoint's; so
    does a refusal without a word about that where another of its models is refused at the same time. Models
    that are not called are forgotten.
    """

    def __init__(self, limit: int, jitter: Callable[[], float], observer: Observer = NO_OBSERVER) -> None:
        """`jitter` gives a number from 0 to 1, another one each time."""
        self._limit = limit
        self._observer = observer
        self._closed: set[str] = set()
        """The gates that were closed and that no call has passed since, by name."""
        self._jitter = jitter
        self._free = limit
        self._lines: dict[str, _Line] = {}
        self._endpoints: dict[str, Gate] = {}
        self._last_refusal: dict[str, tuple[str, float]] = {}
        """By endpoint: which model was refused last, and when."""
        self._shared_until_s: dict[str, float] = {}
        """By endpoint: until when a refusal that names no scope is taken for one of all its models."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._offer: tuple[str, InstanceRef] | None = None
        """The model and the instance that is being asked, if one is: it comes before those that wait."""
        self._offered_slots = 0
        """How many slots it may acquire."""
        self._waiting_count = 0
        """How many wait that have not been asked this time."""
        self._is_dispatching = False
        """Whether those who wait are being asked, or will be once all has ended that ends in this pass of the
        loop: a request that comes now waits with them."""
        self._dispatch_handle: asyncio.Handle | None = None
        self._obstacle = ""
        """Why no call of any model may begin."""

    def hold(self, obstacle: str) -> None:
        """Let no call begin, for a reason that concerns all of them; empty: let them begin again."""
        was_held, self._obstacle = bool(self._obstacle), obstacle
        if was_held and not obstacle:
            self._dispatch_soon()

    def acquire(self, model: str, ref: InstanceRef, on_available: Callable[[], None]) -> Slot | None:
        """Acquire a slot if one is free; otherwise `on_available` is called, once, when one may be."""
        now_s = asyncio.get_running_loop().time()
        line = self._lines.get(model) or self._add_line(model, now_s)
        is_offered = self._offered_slots > 0 and (model, ref) == self._offer
        wait_s = line.wait_s(now_s, has_waited=is_offered or bool(line.queue))
        if self._obstacle:
            line.queue[ref] = on_available
            return None
        if self._free > 0 and wait_s == 0 and (is_offered or not self._must_wait(line, now_s)):
            self._offered_slots -= is_offered
            for gate in line.gates:
                gate.begin(now_s)
            if self._closed:
                self._report_opened(model)
            self._free -= 1
            return Slot(model, now_s)
        line.queue[ref] = on_available
        is_overtaking = wait_s == 0 and self._free > 0 and not self._is_dispatching
        if wait_s or is_overtaking:
            self._schedule_dispatch(model, wait_s or 0)
        return None

    def release(self, slot: Slot, error: ModelError | None) -> None:
        """Release the slot of a call that has ended to those that wait."""
        self._free += 1
        own, shared = self._lines[slot.model].gates
        now_s = asyncio.get_running_loop().time()
        is_shared = error is not None and (
            error.is_shared or (error.is_refusal and self._seems_shared(slot.model, now_s))
        )
        gate, other = (shared, own) if is_shared else (own, shared)
        if error and error.is_refusal:
            gate.refuse(slot.started_s, now_s, error.retry_after_s, self._jitter())
            other.void(slot.started_s)
            self._report_closed(_endpoint(slot.model) if is_shared else slot.model, gate, now_s)
        elif error and error.is_fault:
            gate.fail(slot.started_s, now_s, error.retry_after_s, self._jitter())
            other.void(slot.started_s)
            self._report_closed(_endpoint(slot.model) if is_shared else slot.model, gate, now_s)
        else:
            own.end()
            shared.end()
        self._dispatch_soon()

    def _dispatch_soon(self) -> None:
        if not self._is_dispatching and any(line.queue for line in self._lines.values()):
            self._is_dispatching = True
            self._dispatch_handle = asyncio.get_running_loop().call_soon(self._dispatch)

    def _report_closed(self, name: str, gate: Gate, now_s: float) -> None:
        if gate.closed_s == now_s:
            self._closed.add(name)
            self._observer.on_gate_closed(name, gate.closed_until_s - now_s, is_refusal=gate.is_refused)

    def _report_opened(self, model: str) -> None:
        for name in (model, _endpoint(model)):
            if name in self._closed:
                self._closed.remove(name)
                self._observer.on_gate_opened(name)

    def _seems_shared(self, model: str, now_s: float) -> bool:
        """Return whether models of an endpoint were refused together, and so share a limit for a while."""
        endpoint = _endpoint(model)
        other, other_s = self._last_refusal.get(endpoint, (model, now_s))
        self._last_refusal[endpoint] = (model, now_s)
        if other != model and now_s - other_s <= _TOGETHER_S:
            self._shared_until_s[endpoint] = now_s + _SHARED_S
        return now_s < self._shared_until_s.get(endpoint, 0.0)

    def obstacle(self, model: str) -> str:
        """Return what a model's calls wait for now."""
        if self._obstacle:
            return self._obstacle
        now_s = asyncio.get_running_loop().time()
        line = self._lines.get(model) or self._add_line(model, now_s)
        for name, gate in zip((model, _endpoint(model)), line.gates, strict=True):
            wait_s = gate.wait_s(now_s, has_waited=True)
            if wait_s is None:
                return f"{name} takes no more calls at the same time: another one has to end first"
            if wait_s:
                return f"{name} takes no more calls for now: it is called again in {math.ceil(wait_s)} s"
        return (
            f"{self._limit} model calls are under way, as many as may be at a time "
            "(ORCHESTRATOR_MAX_CONCURRENT_CALLS)"
        )

    def gates(self) -> Sequence[GateStatus]:
        """Return how the gates of models and endpoints stand."""
        now_s = asyncio.get_running_loop().time()
        waiting = Counter[str]()
        for model, line in self._lines.items():
            waiting[_endpoint(model)] += len(line.queue)
        statuses = [
            _status(model, line.gates[0], now_s, len(line.queue)) for model, line in self._lines.items()
        ]
        shared = [_status(name, gate, now_s, waiting[name]) for name, gate in self._endpoints.items()]
        return statuses + shared

    def withdraw(self, ref: InstanceRef) -> None:
        """Take an instance out of every queue: it wants no slot any more."""
        for line in self._lines.values():
            line.queue.discard(ref)

    def close(self) -> None:
        """Grant no more slots."""
        self._free = -self._limit
        for pending in (*self._timers.values(), self._dispatch_handle):
            if pending:
                pending.cancel()

    def _add_line(self, model: str, now_s: float) -> _Line:
        """Add a model, and drop the idle ones: clients may name any number of models."""
        for name, line in tuple(self._lines.items()):
            if not line.queue and line.gates[0].is_idle(now_s):
                del self._lines[name]
                self._closed.discard(name)
                if timer := self._timers.pop(name, None):
                    timer.cancel()
        endpoint = _endpoint(model)
        shared = self._endpoints.get(endpoint) or Gate(self._limit)
        self._endpoints[endpoint] = shared
        return self._lines.setdefault(model, _Line((Gate(self._limit), shared), FairQueue()))

    def _must_wait(self, line: _Line, now_s: float) -> bool:
        """Whether others come first: the model's own queue, or that of a model that shares its endpoint."""
        return (
            bool(line.queue)
            or self._is_dispatching
            or any(
                other.queue and other is not line and other.wait_s(now_s, has_waited=True) == 0
                for other in self._lines.values()
                if other.gates[1] is line.gates[1]
            )
        )

    def _dispatch(self) -> None:
        """Ask one instance of each model's queue after the other, as long as slots are free.

        The model that was served last comes last the next time.
        """
        self._is_dispatching = True
        self._waiting_count = sum(len(line.queue) for line in self._lines.values())
        while [model for model in tuple(self._lines) if self._dispatch_one(model)]:
            pass
        self._is_dispatching = False

    def _dispatch_one(self, model: str) -> bool:
        line = self._lines.get(model)
        if line is None or not line.queue or self._free <= 0 or self._obstacle:
            return False
        now_s = asyncio.get_running_loop().time()
        wait_s = line.wait_s(now_s, has_waited=True)
        if wait_s:
            self._schedule_dispatch(model, wait_s)
        if wait_s != 0:
            return False
        self._lines[model] = self._lines.pop(model)
        room = min(gate.room(now_s) for gate in line.gates)
        self._offered_slots = max(
            1, min(self._free // self._waiting_count, room // min(self._waiting_count, len(line.queue)))
        )
        self._waiting_count = max(1, self._waiting_count - 1)
        following = line.queue.pop_next()
        assert following  # noqa: S101  it was looked at above
        ref, on_available = following
        self._offer = (model, ref)
        on_available()
        self._offered_slots = 0
        return True

    def _schedule_dispatch(self, model: str, wait_s: float) -> None:
        if timer := self._timers.get(model):
            timer.cancel()
        self._timers[model] = asyncio.get_running_loop().call_later(wait_s, self._dispatch)


def _status(name: str, gate: Gate, now_s: float, waiting: int) -> GateStatus:
    limit, per_s = gate.limit(now_s), gate.per_s(now_s)
    return GateStatus(name, limit, per_s, gate.is_closed(now_s), gate.open_calls, waiting)


def _endpoint(model: str) -> str:
    return model.partition("/")[0]
