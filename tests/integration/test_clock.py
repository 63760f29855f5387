"""The clock on the wall is set while the engine works: waits become neither longer nor shorter."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.histories import resolved
from support.logs import ended, load, ref, steer

from orchestrator.core import lifecycle
from orchestrator.core.create import NewInstance
from orchestrator.core.instance import Instance
from orchestrator.engine.local import LocalEngine
from orchestrator.errors import ModelError
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models.base import ModelRequest, Models
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import instance_pb2 as pb

HOUR_S = 3600.0
DELAY_S = 0.4
BUSY = ModelError("OVERLOADED", "busy", retryable=True)


class TimedModels:
    """A log, a model that fails at first, and a clock on the wall that the test sets."""

    def __init__(self, path: Path, failing: str = "planning") -> None:
        self.path = path
        self.failing = failing
        self.ahead_s = 0.0
        self.sets_s = 0.0
        """How far ahead the clock is set while the first call runs."""
        self.called_s: list[float] = []
        """When what fails at first was called, by a clock that is never set."""

    def now_s(self) -> float:
        return time.time() + self.ahead_s

    def answer(self, request: ModelRequest) -> Answer:
        name = request.prompt.subtask_id or request.prompt.role
        if name == self.failing:
            self.called_s.append(time.monotonic())
            if len(self.called_s) == 1:
                self.ahead_s = self.sets_s
                return BUSY
        return {"planning": plan_text(1), "work": "out", "synthesis": "done"}[request.prompt.role]

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[tuple[LocalEngine, SqliteEventLog]]:
        log = await SqliteEventLog.open(self.path / "log.db")
        models = Models({"scripted": Scripted(self.answer)})
        try:
            async with LocalEngine.running(log, models, now_s=self.now_s, jitter=lambda: 0.0) as engine:
                yield engine, log
        finally:
            await log.aclose()

    @property
    def waited_s(self) -> float:
        return self.called_s[1] - self.called_s[0]


def new_instance(delay_s: float = DELAY_S, duration_s: float | None = None) -> NewInstance:
    policy, budget = pb.RetryPolicy(), pb.Budget()
    policy.initial_delay.FromNanoseconds(int(delay_s * 1e9))
    if duration_s:
        budget.max_duration.FromNanoseconds(int(duration_s * 1e9))
    return NewInstance("a", "Build it", resolved(retry=policy, budget=budget))


def has_failed(instance: Instance) -> bool:
    subtasks = [subtask.work for subtask in instance.subtasks.values()]
    return any(work.failures for work in (instance.planning, instance.synthesis, *subtasks))


async def until_failed(log: SqliteEventLog) -> None:
    with log.notifier.watch(await ref(log, "a")) as woken:
        while not has_failed(await load(log, "a")):
            await woken.wait()
            woken.clear()


@pytest.mark.parametrize("set_s", [-HOUR_S, HOUR_S])
@pytest.mark.parametrize("failing", ["planning", "synthesis"])
async def test_a_retry_keeps_its_delay_when_the_clock_is_set(
    tmp_path: Path, failing: str, set_s: float
) -> None:
    place = TimedModels(tmp_path, failing)
    async with place.engine() as (engine, log):
        await engine.create(new_instance())
        await until_failed(log)
        place.ahead_s = set_s
        assert (await ended(log, "a", 30)).state == pb.STATE_COMPLETE
    assert place.waited_s >= DELAY_S * 0.99


async def test_a_subtask_of_many_keeps_its_delay_when_the_clock_is_set_repeatedly(
    tmp_path: Path,
) -> None:
    place = TimedModels(tmp_path, "t1")
    own = [pb.Subtask(id=name, instructions="do it") for name in ("t1", "t2")]
    config = new_instance().config
    config.subtasks.extend(own)
    async with place.engine() as (engine, log):
        await engine.create(NewInstance("a", "Build it", config))
        await until_failed(log)
        for hours in (1, -1, -30):
            place.ahead_s = hours * HOUR_S
            await steer(engine, "a", lifecycle.pause)
            await steer(engine, "a", lifecycle.resume)
        assert (await ended(log, "a", 30)).state == pb.STATE_COMPLETE
    assert place.waited_s >= DELAY_S * 0.99


async def test_a_clock_set_back_while_the_service_is_down_adds_no_more_than_the_delay(tmp_path: Path) -> None:
    place = TimedModels(tmp_path)
    async with place.engine() as (engine, log):
        await engine.create(new_instance())
        await until_failed(log)
    place.ahead_s = -HOUR_S
    async with place.engine() as (_, log):
        assert (await ended(log, "a", 30)).state == pb.STATE_COMPLETE


async def test_a_clock_set_back_during_a_pause_adds_no_more_than_the_delay(tmp_path: Path) -> None:
    place = TimedModels(tmp_path)
    async with place.engine() as (engine, log):
        await engine.create(new_instance())
        await until_failed(log)
        await steer(engine, "a", lifecycle.pause)
    async with place.engine() as (engine, log):  # so that what was known of the time before is forgotten
        place.ahead_s = -HOUR_S
        await steer(engine, "a", lifecycle.resume)
        assert (await ended(log, "a", 30)).state == pb.STATE_COMPLETE


async def test_a_clock_set_forward_fires_no_deadline(tmp_path: Path) -> None:
    place = TimedModels(tmp_path, "synthesis")
    async with place.engine() as (engine, log):
        await engine.create(new_instance(duration_s=HOUR_S))
        await until_failed(log)
        place.ahead_s = 2 * HOUR_S
        assert (await ended(log, "a", 30)).state == pb.STATE_COMPLETE


async def test_a_clock_set_while_the_first_call_runs_changes_no_deadline(tmp_path: Path) -> None:
    place = TimedModels(tmp_path)
    place.sets_s = 2 * HOUR_S
    async with place.engine() as (engine, log):
        await engine.create(new_instance(duration_s=HOUR_S))
        assert (await ended(log, "a", 30)).state == pb.STATE_COMPLETE


async def test_a_clock_set_back_postpones_no_deadline(tmp_path: Path) -> None:
    place = TimedModels(tmp_path)
    async with place.engine() as (engine, log):
        await engine.create(new_instance(delay_s=60, duration_s=1))
        await until_failed(log)
        place.ahead_s = -HOUR_S
        instance = await ended(log, "a", 30)
    assert instance.error
    assert instance.error.reason == "DEADLINE_EXCEEDED"
    assert len(place.called_s) == 1


async def test_instances_start_in_order_of_creation_whatever_the_clock_says(tmp_path: Path) -> None:
    place = TimedModels(tmp_path, failing="")
    order: list[str] = []

    async def answer(request: ModelRequest) -> Answer:
        if request.prompt.role == "planning":
            order.append(request.prompt.messages[-1].content.split("Build ")[1][0])
            await asyncio.sleep(0)
        return TimedModels.answer(place, request)

    log = await SqliteEventLog.open(tmp_path / "log.db")
    models = Models({"scripted": Scripted(answer)})
    async with LocalEngine.running(log, models, max_active=1, now_s=place.now_s) as engine:
        for number in range(4):
            await engine.create(NewInstance(f"i{number}", f"Build {number}", new_instance().config))
            place.ahead_s -= HOUR_S
        for number in range(4):
            await ended(log, f"i{number}", 30)
    await log.aclose()
    assert order == ["0", "1", "2", "3"]
