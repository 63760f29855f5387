"""Requests that meet in one moment: what is acknowledged is done, and the log stays sound."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.lives import resolved

from orchestrator.core import lifecycle
from orchestrator.core.create import NewInstance
from orchestrator.core.instance import Instance
from orchestrator.engine.local import LocalEngine
from orchestrator.errors import InstanceNotFoundError, ModelError
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.subscription import wait_for_end
from orchestrator.models.base import ModelRequest, Models
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event


class Held:
    """Models that answer once the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.models = Models({"scripted": Scripted(self._answer)})
        self.worked: list[str] = []

    async def _answer(self, request: ModelRequest) -> Answer:
        await self.gate.wait()
        if request.prompt.role == "work":
            self.worked.append(request.prompt.subtask_id)
        return plan_text(2) if request.prompt.role == "planning" else "done"


@asynccontextmanager
async def running(
    path: Path, held: Held, **options: int
) -> AsyncIterator[tuple[LocalEngine, SqliteEventLog]]:
    log = await SqliteEventLog.open(path / "log.db")
    try:
        async with LocalEngine.running(log, held.models, **options) as engine:
            yield engine, log
    finally:
        await log.aclose()


def wish(instance_id: str = "a", **changes: object) -> NewInstance:
    return NewInstance(instance_id, "Build it", resolved(**changes))


def retry(instance: Instance) -> list[Event]:
    return list(lifecycle.retry(instance, pb.InstanceConfig()))


async def until(log: SqliteEventLog, state: pb.State.ValueType) -> None:
    with log.wakeups.watch("a") as woken:
        while (await log.load("a")).state != state:
            await woken.wait()
            woken.clear()


async def test_an_instance_that_waited_for_a_turn_runs_after_a_terminate_and_a_retry(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, held, max_calls=1) as (engine, log):
        await engine.create(wish("first"))
        await engine.create(wish())
        await engine.steer("a", lifecycle.terminate)
        await engine.steer("a", retry)
        held.gate.set()
        assert (await wait_for_end(log, "a", 10)).state == pb.STATE_COMPLETE


async def test_an_instance_that_is_deleted_before_its_retry_gives_its_place_back(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, held, max_active=1) as (engine, log):
        await engine.create(wish())
        changes = (engine.steer("a", lifecycle.terminate), log.delete("a"), engine.steer("a", retry))
        terminated, _, retried = await asyncio.gather(*changes, return_exceptions=True)
        assert isinstance(terminated, Instance)
        assert isinstance(retried, InstanceNotFoundError)
        held.gate.set()
        await engine.create(wish("b"))
        assert (await wait_for_end(log, "b", 10)).state == pb.STATE_COMPLETE


async def test_a_retry_never_falls_to_another_instance_under_the_same_id(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, held) as (engine, log):
        await engine.create(wish())
        changes = (
            engine.steer("a", lifecycle.terminate),
            log.delete("a"),
            engine.create(wish()),
            engine.steer("a", retry),
        )
        *_, created, retried = await asyncio.gather(*changes, return_exceptions=True)
        assert isinstance(created, Instance)
        assert isinstance(retried, InstanceNotFoundError)
        held.gate.set()
        instance = await wait_for_end(log, "a", 10)
        assert instance.state == pb.STATE_COMPLETE
        page = await log.read("a", 0)
        assert page.ordinals == list(range(1, instance.last_sequence + 1))


@pytest.mark.parametrize("ends", [False, True])
async def test_two_changes_in_one_commit_leave_the_state_that_the_events_tell(
    tmp_path: Path, ends: bool
) -> None:
    held = Held()
    async with running(tmp_path, held, max_active=1) as (engine, log):
        await engine.create(wish("first"))
        await engine.create(wish())
        if ends:
            await engine.steer("a", lifecycle.terminate)
            await asyncio.gather(engine.steer("a", retry), engine.steer("a", lifecycle.terminate))
        else:
            await asyncio.gather(engine.steer("a", lifecycle.terminate), engine.steer("a", retry))
        assert (await log.read("a", 0)).state == (await log.load("a")).state
    log = await SqliteEventLog.open(tmp_path / "log.db")
    assert ("a" in await log.unfinished()) == (not ends)
    await log.aclose()


async def test_a_retry_right_after_a_terminate_runs(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, held) as (engine, log):
        await engine.create(wish())

        async def retry_at_once() -> None:
            while (await log.load("a")).state != pb.STATE_TERMINATED:  # noqa: ASYNC110  each pass of the loop
                await asyncio.sleep(0)
            await engine.steer("a", retry)

        retried = asyncio.create_task(retry_at_once())
        await engine.steer("a", lifecycle.terminate)
        await retried
        held.gate.set()
        assert (await wait_for_end(log, "a", 10)).state == pb.STATE_COMPLETE


async def test_terminating_in_the_moment_of_creation_is_obeyed(tmp_path: Path) -> None:
    held = Held()
    held.gate.set()
    async with running(tmp_path, held) as (engine, log):

        async def terminate_at_once() -> None:
            with log.wakeups.watch("a") as woken:
                await woken.wait()
            await engine.steer("a", lifecycle.terminate)

        terminated = asyncio.create_task(terminate_at_once())
        await asyncio.sleep(0)
        await engine.create(wish())
        await terminated
        await engine.create(wish("b"))
        await wait_for_end(log, "b", 10)
        kinds = [event.WhichOneof("payload") for event in (await log.read("a", 0)).events()]
        assert kinds == ["instance_created", "instance_terminated"]


async def test_a_plan_that_awaits_its_review_still_does_after_a_retry(tmp_path: Path) -> None:
    held = Held()
    held.gate.set()
    async with running(tmp_path, held) as (engine, log):
        await engine.create(wish(review_plan=True))
        await until(log, pb.STATE_WAITING)
        await engine.steer("a", lifecycle.terminate)
        assert (await engine.steer("a", retry)).state == pb.STATE_WAITING
        assert held.worked == []


async def test_a_deadline_passes_also_for_one_that_waits_for_its_turn(tmp_path: Path) -> None:
    held = Held()
    budget = pb.Budget()
    budget.max_duration.nanos = 50_000_000
    own = [pb.Subtask(id="x", instructions="do it")]
    async with running(tmp_path, held, max_calls=1) as (engine, log):
        await engine.create(wish("first"))
        await engine.create(wish(budget=budget, subtasks=own))
        instance = await wait_for_end(log, "a", 10)
        assert instance.error
        assert instance.error.reason == "DEADLINE_EXCEEDED"


async def test_an_instance_that_cannot_be_read_keeps_no_other_from_going_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    async with running(tmp_path, held) as (engine, log):
        await engine.create(wish())
        await engine.create(wish("b"))
        broken = Event(instance_id="a", sequence=99, instance_resumed={})
        await log._writer._tables.connection.execute(
            "UPDATE event SET data = ? WHERE position = 1",
            (b"\x0a" + bytes([broken.ByteSize()]) + broken.SerializeToString(),),
        )
        await log._writer._tables.connection.commit()
    held.gate.set()
    async with running(tmp_path, held) as (_, log):
        assert (await wait_for_end(log, "b", 10)).state == pb.STATE_COMPLETE
    assert "a cannot be taken up" in caplog.text


async def test_one_that_stands_still_at_the_end_keeps_no_other_from_being_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    async with running(tmp_path, held) as (engine, _):
        await engine.create(wish())
        await engine.create(wish("b"))
        engine._runs["a"]._pending.append("no outcome")
    assert "a stands still" in caplog.text


async def test_a_slow_endpoint_that_refuses_late_stops_nobody(tmp_path: Path) -> None:
    calls = 0

    async def answer(request: ModelRequest) -> Answer:  # noqa: ARG001
        nonlocal calls
        calls += 1
        number = calls
        if number in (9, 18):
            await asyncio.sleep(0.05 if number == 9 else 1.3)
            return ModelError("OVERLOADED", "later", retryable=True)
        await asyncio.sleep(0.1 if number < 9 else 1.6 if number < 18 else 0)
        return "ok"

    quick = pb.RetryPolicy(max_attempts=3)
    quick.initial_delay.nanos = 1_000_000
    models = Models({"scripted": Scripted(answer), "big": Scripted(subtasks=20)})
    log = await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, models) as engine:
        wide = {"big_model": "big/x", "max_subtasks": 64, "max_parallel_subtasks": 9}
        await engine.create(wish(retry=quick, **wide))
        assert (await wait_for_end(log, "a", 20)).state == pb.STATE_COMPLETE
    await log.aclose()
