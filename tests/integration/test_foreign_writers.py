"""A run that is not the only writer of its instance follows the others, and loses nothing paid for."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from support.histories import resolved
from support.logs import ended, key, load, read, ref

from orchestrator.core import lifecycle
from orchestrator.core.create import NewInstance
from orchestrator.core.instance import COMPLETE, PAUSED, TERMINATED, Instance
from orchestrator.core.origin import NO_ORIGIN
from orchestrator.engine.clock import Clock
from orchestrator.engine.local import LocalEngine
from orchestrator.engine.steering import Action, steer
from orchestrator.errors import StateForbidsError
from orchestrator.log.base import EventLog
from orchestrator.log.memory import MemoryEventLog
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.states import StateStore
from orchestrator.models.base import ModelRequest, Models
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1.event_pb2 import Event


class Workers:
    """Models whose workers answer when the test lets them; every call is counted."""

    def __init__(self, parts: int = 3) -> None:
        self.calls: Counter[str] = Counter()
        self.open: set[str] = set()
        self.changed = asyncio.Condition()
        self.permits = asyncio.Semaphore(0)
        self.models = Models({"scripted": Scripted(self._answer)})
        self._plan = plan_text(parts)

    async def _answer(self, request: ModelRequest) -> Answer:
        name = request.prompt.subtask_id or request.prompt.role
        self.calls[name] += 1
        if request.prompt.subtask_id:
            await self._note(self.open.add, name)
            try:
                await self.permits.acquire()
            finally:
                await self._note(self.open.discard, name)
        return {"planning": self._plan, "work": f"out {name}", "synthesis": "done"}[request.prompt.role]

    async def _note(self, change: Callable[[str], None], name: str) -> None:
        change(name)
        async with self.changed:
            self.changed.notify_all()

    async def until_open(self, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.open) == count)

    def allow(self, count: int) -> None:
        for _ in range(count):
            self.permits.release()


@pytest.fixture(params=["memory", "sqlite"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    log = MemoryEventLog() if request.param == "memory" else await SqliteEventLog.open(tmp_path / "log.db")
    yield log
    await log.aclose()


def steer_from_another_process(log: EventLog) -> Callable[[Action], Awaitable[Instance]]:
    """Steer from another process, without notifying the engine."""
    clock, states = Clock(time.time), StateStore(log)

    async def act(action: Action) -> Instance:
        steered = await steer(
            log,
            states,
            clock,
            key("a"),
            action,
            origin=NO_ORIGIN,
            expected_sequence=None,
            on_durable=lambda _: None,
        )
        return steered.instance

    return act


async def events(log: EventLog) -> Sequence[Event]:
    found: list[Event] = []
    while more := (await read(log, "a", len(found))).events():
        found += more
    return found


async def test_results_that_meet_a_pause_of_another_writer_are_recorded(log: EventLog) -> None:
    workers = Workers()
    async with LocalEngine.running(log, workers.models) as engine:
        act = steer_from_another_process(log)
        await engine.create(NewInstance("a", "Build it", resolved()))
        await workers.until_open(3)
        await act(lifecycle.pause)
        workers.allow(3)
        await workers.until_open(0)
        with log.notifier.watch(await ref(log, "a")) as woken:
            while (await load(log, "a")).state != PAUSED:
                await woken.wait()
                woken.clear()
        assert [subtask.output for subtask in (await load(log, "a")).subtasks.values()] == [
            "out t1",
            "out t2",
            "out t3",
        ]
        await engine.steer(key("a"), lifecycle.resume)
        assert (await ended(log, "a", 10)).state == COMPLETE
    assert set(workers.calls.values()) == {1}


async def test_a_run_whose_instance_was_terminated_elsewhere_appends_nothing_more(log: EventLog) -> None:
    workers = Workers()
    async with LocalEngine.running(log, workers.models) as engine:
        act = steer_from_another_process(log)
        await engine.create(NewInstance("a", "Build it", resolved()))
        await workers.until_open(3)
        terminated = await act(lifecycle.terminate)
        workers.allow(1)
        await workers.until_open(0)  # the others are cut off once the first one's result is refused
        await engine.create(NewInstance("b", "Build it", resolved()))
        workers.allow(5)
        await ended(log, "b", 10)
        assert await load(log, "a") == terminated
        assert terminated.state == TERMINATED


async def test_each_result_is_recorded_and_paid_for_once_whatever_others_append(
    log: EventLog,
) -> None:
    workers = Workers(12)
    async with LocalEngine.running(log, workers.models) as engine:
        act = steer_from_another_process(log)
        await engine.create(NewInstance("a", "Build it", resolved(max_parallel_subtasks=4)))

        async def disturb() -> None:
            while True:
                for action in (lifecycle.pause, lifecycle.resume):
                    try:
                        steered = await act(action)
                    except StateForbidsError:
                        continue
                    if steered.state == PAUSED:  # no run would notice: the engine has to be notified
                        await engine.steer(key("a"), lifecycle.resume)
                    await asyncio.sleep(0)

        async def let_work() -> None:
            while True:
                workers.allow(1)
                await asyncio.sleep(0.002)

        tasks = [asyncio.create_task(disturb()), asyncio.create_task(let_work())]
        instance = await ended(log, "a", 20)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert instance.state == COMPLETE
    recorded = await events(log)
    assert [event.sequence for event in recorded] == list(range(1, len(recorded) + 1))
    completed = Counter(e.subtask_completed.subtask_id for e in recorded if e.HasField("subtask_completed"))
    assert set(completed.values()) == {1}
    assert len(completed) == 12
    started = Counter(e.subtask_started.subtask_id for e in recorded if e.HasField("subtask_started"))
    assert sum(started.values()) == sum(completed.values())
