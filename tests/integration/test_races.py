"""Requests that meet in one moment: what is acknowledged is done, and the log stays sound."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.histories import changes, resolved
from support.logs import delete, ended, load, read, ref, steer

from orchestrator.core import lifecycle
from orchestrator.core.create import NewInstance
from orchestrator.core.identity import InstanceKey
from orchestrator.core.instance import Instance
from orchestrator.engine.local import LocalEngine
from orchestrator.errors import InstanceNotFoundError, ModelError, StateForbidsError
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.states import Loaded
from orchestrator.models.base import ModelRequest, Models
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event


class GatedModels:
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
    path: Path, gated: GatedModels, **options: int
) -> AsyncIterator[tuple[LocalEngine, SqliteEventLog]]:
    log = await SqliteEventLog.open(path / "log.db")
    try:
        async with LocalEngine.running(log, gated.models, **options) as engine:
            yield engine, log
    finally:
        await log.aclose()


def new_instance(instance_id: str = "a", **changes: object) -> NewInstance:
    return NewInstance(instance_id, "Build it", resolved(**changes))


def retry(instance: Instance) -> list[Event]:
    return list(lifecycle.retry(instance, changes()))


async def until(log: SqliteEventLog, state: pb.State.ValueType) -> None:
    with log.notifier.watch(await ref(log, "a")) as woken:
        while (await load(log, "a")).state != state:
            await woken.wait()
            woken.clear()


async def test_a_queued_instance_runs_after_a_terminate_and_a_retry(tmp_path: Path) -> None:
    gated = GatedModels()
    async with running(tmp_path, gated, max_calls=1) as (engine, log):
        await engine.create(new_instance("first"))
        await engine.create(new_instance())
        await steer(engine, "a", lifecycle.terminate)
        await steer(engine, "a", retry)
        gated.gate.set()
        assert (await ended(log, "a", 10)).state == pb.STATE_COMPLETE


async def test_an_instance_deleted_during_its_retry_releases_its_place(tmp_path: Path) -> None:
    gated = GatedModels()
    async with running(tmp_path, gated, max_active=1) as (engine, log):
        await engine.create(new_instance())
        await steer(engine, "a", lifecycle.terminate)
        deleted, retried = await asyncio.gather(
            delete(log, "a"), steer(engine, "a", retry), return_exceptions=True
        )
        # One of them came first, and the other failed.
        assert (deleted is None) == isinstance(retried, InstanceNotFoundError)
        assert isinstance(deleted, StateForbidsError) == isinstance(retried, Instance)
        gated.gate.set()
        await engine.create(new_instance("b"))
        assert (await ended(log, "b", 10)).state == pb.STATE_COMPLETE


async def test_a_retry_is_never_applied_to_another_instance_with_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = GatedModels()
    async with running(tmp_path, gated) as (engine, log):
        first = await engine.create(new_instance())
        await steer(engine, "a", lifecycle.terminate)

        load_first = engine.states.load

        async def load_and_replace(key: InstanceKey) -> Loaded:
            loaded = await load_first(key)
            await log.delete(first.ref)
            await engine.create(new_instance())
            return loaded

        monkeypatch.setattr(engine.states, "load", load_and_replace)
        with pytest.raises(InstanceNotFoundError):
            await steer(engine, "a", retry)
        gated.gate.set()
        instance = await ended(log, "a", 10)
        assert instance.state == pb.STATE_COMPLETE
        page = await read(log, "a")
        assert list(page.ordinals) == list(range(1, instance.last_sequence + 1))


async def test_concurrent_changes_leave_the_state_that_the_events_fold_to(tmp_path: Path) -> None:
    gated = GatedModels()
    async with running(tmp_path, gated, max_active=1) as (engine, log):
        await engine.create(new_instance("first"))
        await engine.create(new_instance())
        actions = [lifecycle.terminate, retry, lifecycle.pause, lifecycle.resume, lifecycle.terminate, retry]
        answers = await asyncio.gather(
            *(steer(engine, "a", action) for action in actions * 5), return_exceptions=True
        )
        acted = [answer for answer in answers if isinstance(answer, Instance)]
        assert all(isinstance(answer, Instance | StateForbidsError) for answer in answers)
        recorded = await load(log, "a")
        assert max(acted, key=lambda instance: instance.last_sequence) == recorded
        assert len({instance.last_sequence for instance in acted}) == len(acted)  # each saw those before it
        assert (await read(log, "a")).state == recorded.state


async def test_a_retry_right_after_a_terminate_runs(tmp_path: Path) -> None:
    gated = GatedModels()
    async with running(tmp_path, gated) as (engine, log):
        await engine.create(new_instance())

        async def retry_at_once() -> None:
            while (await load(log, "a")).state != pb.STATE_TERMINATED:  # noqa: ASYNC110  each pass of the loop
                await asyncio.sleep(0)
            await steer(engine, "a", retry)

        retried = asyncio.create_task(retry_at_once())
        await steer(engine, "a", lifecycle.terminate)
        await retried
        gated.gate.set()
        assert (await ended(log, "a", 10)).state == pb.STATE_COMPLETE


async def test_a_termination_during_the_creation_takes_effect(tmp_path: Path) -> None:
    gated = GatedModels()
    async with running(tmp_path, gated) as (engine, log):

        async def terminate_at_once() -> None:
            with log.notifier.watch() as woken:
                await woken.wait()
            await steer(engine, "a", lifecycle.terminate)

        terminated = asyncio.create_task(terminate_at_once())
        await asyncio.sleep(0)
        await engine.create(new_instance())
        await terminated
        gated.gate.set()
        await engine.create(new_instance("b"))
        await ended(log, "b", 10)
        kinds = [event.WhichOneof("payload") for event in (await read(log, "a")).events()]
        assert kinds[-1] == "instance_terminated"
        assert "subtask_completed" not in kinds


async def test_a_plan_awaiting_review_still_does_after_a_retry(tmp_path: Path) -> None:
    gated = GatedModels()
    gated.gate.set()
    async with running(tmp_path, gated) as (engine, log):
        await engine.create(new_instance(review_plan=True))
        await until(log, pb.STATE_WAITING)
        await steer(engine, "a", lifecycle.terminate)
        assert (await steer(engine, "a", retry)).state == pb.STATE_WAITING
        assert gated.worked == []


async def test_a_deadline_also_passes_for_a_queued_instance(tmp_path: Path) -> None:
    gated = GatedModels()
    budget = pb.Budget()
    budget.max_duration.nanos = 50_000_000
    own = [pb.Subtask(id="x", instructions="do it")]
    async with running(tmp_path, gated, max_calls=1) as (engine, log):
        await engine.create(new_instance("first"))
        await engine.create(new_instance(budget=budget, subtasks=own))
        instance = await ended(log, "a", 10)
        assert instance.error
        assert instance.error.reason == "DEADLINE_EXCEEDED"


async def test_an_instance_that_cannot_be_read_does_not_block_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gated = GatedModels()
    async with running(tmp_path, gated) as (engine, log):
        await engine.create(new_instance())
        await engine.create(new_instance("b"))
        broken = Event(instance_id="a", sequence=99, instance_resumed={})
        await log._writer._tables.connection.execute(
            "UPDATE event SET data = ? WHERE position = 1",
            (b"\x0a" + bytes([broken.ByteSize()]) + broken.SerializeToString(),),
        )
        await log._writer._tables.connection.commit()
    gated.gate.set()
    async with running(tmp_path, gated) as (_, log):
        assert (await ended(log, "b", 10)).state == pb.STATE_COMPLETE
    (record,) = [record for record in caplog.records if "cannot be taken up" in record.message]
    assert record.fields == {"instance": "a"}  # type: ignore[attr-defined]


async def test_a_fault_at_the_end_does_not_prevent_the_cancellation_of_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gated = GatedModels()
    async with running(tmp_path, gated) as (engine, log):
        await engine.create(new_instance())
        await engine.create(new_instance("b"))
        run = engine._runs[await ref(log, "a")]
        run._pending.append(None)  # type: ignore[arg-type]
    (record,) = [record for record in caplog.records if "does nothing more" in record.message]
    assert record.fields == {"instance": "a"}  # type: ignore[attr-defined]


async def test_a_late_refusal_of_a_slow_endpoint_stops_no_other_call(tmp_path: Path) -> None:
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
        await engine.create(new_instance(retry=quick, **wide))
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
    await log.aclose()
