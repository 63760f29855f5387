"""What clients are told, and what is paid for, while the storage takes no writes."""

import asyncio
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.engines import GatedProvider, engine_on
from support.histories import CONFIG, History
from support.logs import create, creation, ended, ids, load
from support.storage import FailingStorage, disk_full, sync_failed

from orchestrator.core import lifecycle
from orchestrator.core.create import NewInstance
from orchestrator.core.identity import InstanceKey
from orchestrator.errors import UnavailableError
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.storage_faults import is_certainly_not_committed
from orchestrator.models.scripted import Scripted, plan_text
from orchestrator.v1 import instance_pb2 as pb

WITHIN_S = 1.0
"""What clients are promised."""


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> FailingStorage:
    monkeypatch.setattr("orchestrator.log.sqlite.writer.RETRY_S", 0.02)
    return FailingStorage(monkeypatch)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  what the log's writer notices is no event
            await asyncio.sleep(0.005)


def new(name: str) -> NewInstance:
    return NewInstance(name, "Build it", CONFIG)


async def reasons(*requests: "asyncio.Future[object]") -> set[str]:
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    return {str(getattr(outcome, "reason", outcome)) for outcome in outcomes}


async def test_on_a_full_disk_every_request_is_answered_and_nothing_was_changed(
    storage: FailingStorage, tmp_path: Path
) -> None:
    model = GatedProvider(plan_text(6))
    key = InstanceKey("", "a")
    async with engine_on(tmp_path / "log.db", model.provider) as (engine, log):
        ref = (await engine.create(new("a"))).ref
        over = await create(log, History("over").terminated())
        await model.until(lambda: model.open == 6)
        storage.error = disk_full()
        model.gate.set()  # what the run appends now stays queued
        for _ in range(3):  # at the first fault, and long after it
            transactions = storage.transactions
            asked = [
                asyncio.ensure_future(request)
                for request in (
                    engine.create(new("b")),
                    engine.create_all([new("c"), new("d")]),
                    engine.steer(key, lifecycle.pause),
                    engine.steer(key, lifecycle.terminate),
                    log.delete(over),
                )
            ]
            async with asyncio.timeout(WITHIN_S + 4):  # a busy machine is slow; a hang is for ever
                assert await reasons(*asked) == {"STORAGE_READ_ONLY"}
            await until(lambda before=transactions: storage.transactions > before + 2)
        with pytest.raises(UnavailableError, match=r"free disk space.*nothing was changed") as caught:
            await engine.create(new("b"))
        assert caught.value.retry_after_s
        assert (await load(log, "a")).state == pb.STATE_RUNNING
        assert await ids(log) == ["over", "a"]
        storage.error = None
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
        assert engine.waiting_reason(ref) == ""
        assert (await engine.create(new("b"))).ref.id == "b"


async def test_a_commit_whose_sync_fails_is_answered_as_unknown(
    storage: FailingStorage, tmp_path: Path
) -> None:
    async with engine_on(tmp_path / "log.db", Scripted()) as (engine, log):
        storage.error = sync_failed()
        async with asyncio.timeout(WITHIN_S + 4):
            with pytest.raises(UnavailableError, match="the same request_id") as caught:
                await engine.create(new("a"))
            assert caught.value.reason == "COMMIT_UNKNOWN"
            assert caught.value.retry_after_s
            with pytest.raises(UnavailableError, match="nothing was changed") as caught:
                await engine.create(new("b"))
            assert caught.value.reason == "STORAGE_READ_ONLY"
        storage.error = None
        await until(lambda: not log.obstacle)
        assert await ids(log) == []


async def test_a_commit_whose_sync_failed_once_is_settled_before_the_answer(
    storage: FailingStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.writer.ANSWER_S", 20.0)
    path = tmp_path / "log.db"
    log = await SqliteEventLog.open(path)
    first = log._writer._tables.connection
    write = first._write

    def fail_once(*_: object) -> None:
        monkeypatch.setattr(first, "_write", write)
        raise sync_failed()

    monkeypatch.setattr(first, "_write", fail_once)
    with pytest.raises(UnavailableError) as caught:
        await log.answer(log.create([creation(History("a"))]))
    assert caught.value.reason == "STORAGE_READ_ONLY"
    assert log._writer._tables.connection is not first  # it was opened anew
    assert storage.transactions == 1  # and what was committed there took the failed one's place
    assert not log.obstacle
    await create(log, History("a"))
    await log.aclose()


async def test_storage_that_hangs_keeps_no_client_waiting_and_what_it_wrote_runs(
    storage: FailingStorage, tmp_path: Path
) -> None:
    model = GatedProvider(plan_text(6))
    model.gate.set()
    async with engine_on(tmp_path / "log.db", model.provider) as (engine, log):
        storage.answers.clear()
        written = asyncio.ensure_future(engine.create(new("written")))
        await until(lambda: storage.transactions > 0)
        queued = [asyncio.ensure_future(engine.create(new(f"q{number}"))) for number in range(3)]
        async with asyncio.timeout(WITHIN_S + 4):
            assert await reasons(written) == {"COMMIT_UNKNOWN"}
            assert await reasons(*queued) == {"STORAGE_READ_ONLY"}
            with pytest.raises(UnavailableError, match="has not answered for"):
                await engine.create(new("late"))
        assert not model.calls
        storage.answers.set()
        await until(lambda: not log.obstacle)
        assert (await ended(log, "written", 20)).state == pb.STATE_COMPLETE
        assert await ids(log) == ["written"]


async def test_no_call_begins_while_nothing_can_be_recorded_and_none_is_paid_for_twice(
    storage: FailingStorage, tmp_path: Path
) -> None:
    model = GatedProvider(plan_text(6))
    async with engine_on(tmp_path / "log.db", model.provider, max_calls=2) as (engine, log):
        ref = (await engine.create(new("a"))).ref
        await model.until(lambda: model.calls == ["planning", "t1", "t2"])
        storage.error = disk_full()
        with pytest.raises(UnavailableError):
            await engine.create(new("b"))
        model.gate.set()
        await model.until(lambda: model.open == 0)
        await until(lambda: "free disk space" in engine.waiting_reason(ref))
        assert model.calls == ["planning", "t1", "t2"]
        storage.error = None
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
    assert sorted(model.calls) == sorted(["planning", *(f"t{n}" for n in range(1, 7)), "synthesis"])


async def test_no_call_begins_at_a_start_on_storage_that_takes_no_writes(
    storage: FailingStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.db"
    log = await SqliteEventLog.open(path)
    await create(log, History("a"))
    await log.aclose()

    async def broken(_: object) -> None:
        raise disk_full()

    monkeypatch.setattr("orchestrator.log.sqlite.tables.SqliteTables.checkpoint", broken)
    storage.error = disk_full()
    model = GatedProvider(plan_text(6))
    model.gate.set()
    async with engine_on(path, model.provider) as (engine, log):
        with pytest.raises(UnavailableError, match="free disk space"):
            await engine.create(new("b"))
        assert (await load(log, "a")).state == pb.STATE_QUEUED
        assert not model.calls
        storage.error = None
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE


def test_an_error_of_a_sync_is_no_proof_that_nothing_was_written() -> None:
    assert not is_certainly_not_committed(sync_failed())
    assert not is_certainly_not_committed(sqlite3.OperationalError("of no code"))
    assert is_certainly_not_committed(disk_full())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB; skip where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("lock", ["as it was left", "empty"])
async def test_a_start_on_a_full_disk_serves_reads_and_goes_on_by_itself(small_disk: Path, lock: str) -> None:
    path = small_disk / "log.db"
    log = await SqliteEventLog.open(path)
    await create(log, History("a"))
    await log.aclose()
    if lock == "empty":
        (small_disk / "log.db.lock").write_bytes(b"")
    filling = small_disk / "filling"
    with filling.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    model = GatedProvider(plan_text(6))
    model.gate.set()
    async with engine_on(path, model.provider) as (engine, log):
        assert await ids(log) == ["a"]
        assert (await load(log, "a")).state == pb.STATE_QUEUED
        assert await reasons(asyncio.ensure_future(engine.create(new("b")))) == {"STORAGE_READ_ONLY"}
        assert "free disk space" in log.obstacle
        assert not model.calls
        filling.unlink()
        await until(lambda: not log.obstacle)
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
        assert (await engine.create(new("b"))).ref.id == "b"
    log = await SqliteEventLog.open(path)
    assert await ids(log) == ["b", "a"]
    await log.aclose()
