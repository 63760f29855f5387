"""What only the SQLite log has: a file, a lock, group commit, and storage that fails."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.histories import History, labelled
from support.logs import append, create, creation, delete, global_pages, ids, key, load, read, record

from orchestrator.errors import InstanceNotFoundError, StorageError, UnavailableError
from orchestrator.log.base import Page, Query, SequenceConflictError, encode_row
from orchestrator.log.retention import sweep
from orchestrator.log.sqlite import SqliteEventLog, schema
from orchestrator.log.sqlite.connection import Statement
from orchestrator.log.subscription import CaughtUp, Idle, follow, follow_all
from orchestrator.v1.event_pb2 import Event, InstancePauseRequested


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteEventLog]:
    log = await SqliteEventLog.open(tmp_path / "log.db")
    yield log
    await log.aclose()


async def test_everything_is_present_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = await SqliteEventLog.open(path)
    history = History("a").planned().done("t1")
    await create(log, history)
    await log.aclose()
    log = await SqliteEventLog.open(path)
    assert await load(log, "a") == history.instance
    await record(log, history.done("t2"))
    assert list((await log.read_all(0)).events.ordinals) == list(range(1, len(history.events) + 1))
    await log.aclose()


async def test_appends_queued_together_are_committed_together(log: SqliteEventLog) -> None:
    commits = 0
    write = log._writer._tables.connection.write

    async def counted(statements: Sequence[Statement]) -> None:
        nonlocal commits
        commits += 1
        await write(statements)

    log._writer._tables.connection.write = counted  # type: ignore[method-assign]
    histories = [History(f"i{number}") for number in range(500)]
    await asyncio.gather(*(log.create([creation(history)]) for history in histories))
    assert 1 <= commits <= 2


async def test_the_journal_is_a_wal_that_is_synced_at_each_commit(log: SqliteEventLog) -> None:
    for pragma, value in (("journal_mode", "wal"), ("synchronous", 2)):
        rows = list(await log._writer._tables.connection.execute_fetchall(f"PRAGMA {pragma}"))
        assert rows[0][0] == value
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await log._reader.execute("DELETE FROM event")


@pytest.mark.usefixtures("log")
async def test_a_second_server_on_the_same_database_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"in use by another server \(process \d+\).*stop that server"):
        await SqliteEventLog.open(tmp_path / "log.db")


async def test_a_newer_database_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await (await SqliteEventLog.open(path)).aclose()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StorageError, match="use the release that wrote it"):
        await SqliteEventLog.open(path)


def write_old_file(path: Path, version: int, *histories: History) -> None:
    """Make a file as a release wrote it that knew no later version than 1 or 2."""
    connection = sqlite3.connect(path)
    connection.create_function("event_time_s", 1, float)
    for script in schema.MIGRATIONS[:version]:
        connection.executescript(script)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute(f"PRAGMA application_id = {schema._APPLICATION_ID}")
    for number, history in enumerate(histories, 1):
        instance = history.instance
        connection.execute(
            "INSERT INTO instance (key, id, state, request_id, request_digest) VALUES (?, ?, ?, ?, '')",
            (number, instance.id, instance.state, f"request {number}"),
        )
        if version == 2:
            connection.execute(
                "UPDATE instance SET end_time_s = ? WHERE key = ?", (instance.end_time_s, number)
            )
        connection.execute("INSERT INTO label VALUES (?, 'team', ?)", (number, instance.id))
        connection.executemany(
            "INSERT INTO event (instance, sequence, data) VALUES (?, ?, ?)",
            [(number, event.sequence, encode_row(event)) for event in history.events],
        )
    connection.commit()
    connection.close()


@pytest.mark.parametrize("version", [1, 2])
async def test_a_database_of_an_older_version_is_read_and_continued(version: int, tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    ended, running = History("ended").planned().done("t1", "t2", "t3").completed(), History("running")
    write_old_file(path, version, ended, running)
    log = await SqliteEventLog.open(path)
    assert await log.finished_before(ended.instance.end_time_s, 9) == []
    (ref,) = await log.finished_before(ended.instance.end_time_s + 1, 9)
    assert ref == (key("ended"), 1)
    assert await load(log, "ended") == ended.instance
    assert [row.view for row in (await log.list(Query())).rows] == [b"", b""]
    assert [row.head.ref for row in (await log.list(Query(labels=[("team", "ended")]))).rows] == [ref]
    await record(log, running.planned())
    assert await load(log, "running") == running.instance
    await log.delete(ref)
    await log.aclose()
    log = await SqliteEventLog.open(path)
    assert await log.last_position() == len(ended.events) + len(running.events) + 1
    assert [head.ref.id for head in await log.unfinished()] == ["running"]
    page = await log.read_all(await log.last_position() - 1)
    assert page.deletions == [(ref, page.cursor)]
    assert (await create(log, History("ended"))).incarnation == 3
    await log.aclose()


async def test_a_file_can_be_opened_while_another_program_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.connection.BUSY_S", 0.05)
    path = tmp_path / "log.db"
    await (await SqliteEventLog.open(path)).aclose()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    log = await SqliteEventLog.open(path)
    assert await log.last_position() == 0
    await log.aclose()
    holder.close()


async def test_rows_refer_only_to_existing_rows(log: SqliteEventLog) -> None:
    await create(log, History("a"))
    connection = log._writer._tables.connection
    for table, rest in (("label", "'n', 'v'"), ("event", "1, x''"), ("summary", "1, x''")):
        place = "99, " if table == "event" else ""
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            await connection.execute(f"INSERT INTO {table} VALUES ({place}77, {rest})")
        await connection.rollback()
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        await connection.execute("DELETE FROM instance")
    await connection.rollback()


async def free_pages(log: SqliteEventLog) -> int:
    ((pages,),) = await log._reader.execute_fetchall("PRAGMA freelist_count")
    return int(pages)


async def test_deletions_shrink_the_file(log: SqliteEventLog, tmp_path: Path) -> None:
    for number in range(200):
        await create(log, History(f"old-{number}", instructions="x" * 30_000).terminated())
    await create(log, History("kept"))
    list(await log._writer._tables.connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)"))
    before = (tmp_path / "log.db").stat().st_size
    assert before > 6_000_000
    assert await sweep(log, 1e12) == 200
    await asyncio.wait_for(_until_shrunk(log), 10)
    await create(log, History("new"))  # nothing is in its way
    await log.aclose()
    assert (tmp_path / "log.db").stat().st_size < before / 10
    reopened = await SqliteEventLog.open(tmp_path / "log.db")
    assert {row.head.ref.id for row in (await reopened.list(Query())).rows} == {"kept", "new"}
    assert (await load(reopened, "kept")).last_sequence == 1
    await reopened.aclose()
    log.aclose = _nothing  # type: ignore[method-assign]


async def _until_shrunk(log: SqliteEventLog) -> None:
    while await free_pages(log):  # noqa: ASYNC110  a page given back is no event
        await asyncio.sleep(0.01)


async def test_a_log_continues_to_free_pages_left_by_an_earlier_service(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = await SqliteEventLog.open(path)
    await create(log, History("a", instructions="x" * 30_000).terminated())
    log._writer._tables.shrink = _not_at_all  # type: ignore[method-assign]
    await delete(log, "a")
    assert await free_pages(log)
    await log.aclose()
    log = await SqliteEventLog.open(path)
    await asyncio.wait_for(_until_shrunk(log), 10)
    await log.aclose()


async def _not_at_all(_: int) -> bool:
    return False


async def test_an_older_file_keeps_its_free_pages_until_it_is_rebuilt(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    write_old_file(path, 2, History("a", instructions="x" * 30_000).terminated(), History("b"))
    log = await SqliteEventLog.open(path)
    await delete(log, "a")
    await create(log, History("c"))  # the writer waits for no page to go
    assert await free_pages(log)
    await log.aclose()
    with sqlite3.connect(path) as connection:  # as the documentation says
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
    connection.close()
    log = await SqliteEventLog.open(path)
    assert not await free_pages(log)
    assert list(await log._reader.execute_fetchall("PRAGMA auto_vacuum")) == [(2,)]
    assert (await load(log, "b")).prompt == "Build it"
    await log.aclose()


async def test_another_programs_database_is_rejected_and_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StorageError, match="belongs to another program"):
        await SqliteEventLog.open(path)


async def test_a_file_that_is_not_a_database_is_rejected_and_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but the notes of a lifetime" * 100)
    with pytest.raises(StorageError, match="it is some other file"):
        await SqliteEventLog.open(path)
    assert path.read_text().startswith("not a database")


@pytest.mark.parametrize("name", ["missing/../log.db", "a-file/log.db", "a-folder", "/proc/log.db"])
async def test_a_path_that_cannot_be_written_is_reported(name: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder").mkdir()
    try:
        log = await SqliteEventLog.open(tmp_path / name)
    except StorageError as error:
        assert "set ORCHESTRATOR_DATABASE to a path that this user may write" in str(error)  # noqa: PT017
        assert ("name a file in it" in str(error)) == (name == "a-folder")  # noqa: PT017
        assert list(tmp_path.glob("a-folder*")) == [tmp_path / "a-folder"]
    else:
        assert name.startswith("missing")
        await log.aclose()


async def test_a_database_locked_by_another_program_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.connection.BUSY_S", 0.05)
    path = tmp_path / "log.db"
    await (await SqliteEventLog.open(path)).aclose()
    holder = sqlite3.connect(path)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="another program holds it"):
        await SqliteEventLog.open(path)
    holder.close()


async def test_a_lock_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    program = (
        "import asyncio, sys; from pathlib import Path; from orchestrator.log.sqlite import SqliteEventLog\n"
        "async def main():\n"
        "    await SqliteEventLog.open(Path(sys.argv[1]))\n"
        "    print('open', flush=True)\n"
        "    await asyncio.sleep(99)\n"
        "asyncio.run(main())"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert holder.stdout
    assert holder.stdout.readline() == b"open\n"
    with pytest.raises(StorageError, match=f"process {holder.pid}"):
        await SqliteEventLog.open(path)
    holder.kill()
    holder.communicate()
    await (await SqliteEventLog.open(path)).aclose()


async def fill(log: SqliteEventLog) -> None:
    """Leave no room: the next commit finds the disk full."""
    rows = list(await log._writer._tables.connection.execute_fetchall("PRAGMA page_count"))
    await log._writer._tables.connection.execute_fetchall(f"PRAGMA max_page_count = {rows[0][0]}")


async def test_a_full_disk_rejects_creations_keeps_results_and_recovers(
    log: SqliteEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.writer.RETRY_S", 0.01)
    history = History("a").planned()
    ref = await create(log, history)
    # A reopened connection has no bound: what fails once succeeds when it is tried again.
    await fill(log)
    before = len(history.events)
    history.started("t1")
    history.events[-1].subtask_started.model = "x" * 100_000
    wanted = History("b", instructions="y" * 30_000)
    results = await asyncio.gather(
        log.append(append(history, ref, before)._replace(waits_for_storage=True)),
        log.create([creation(wanted)]),
        return_exceptions=True,
    )
    assert results[0] is None
    assert isinstance(results[1], UnavailableError)
    assert results[1].reason == "STORAGE_READ_ONLY"
    assert "free disk space" in str(results[1])
    assert (await load(log, "a")).last_sequence == history.instance.last_sequence
    await create(log, wanted)
    assert list((await log.read_all(0)).events.ordinals) == list(range(1, len(history.events) + 2))


async def test_a_commit_that_failed_but_reached_the_disk_is_not_written_twice(
    log: SqliteEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.writer.RETRY_S", 0.01)
    write = log._writer._tables.connection.write

    async def write_and_fail(statements: Sequence[Statement]) -> None:
        await write(statements)
        raise sqlite3.OperationalError("disk I/O error")

    history = History("a")
    first = log._writer._tables.connection
    first.write = write_and_fail  # type: ignore[method-assign]
    await create(log, history)
    assert log._writer._tables.connection is not first  # it did fail
    page = await log.read_all(0)
    assert list(page.events.events()) == history.events


async def test_a_log_that_rejected_creations_accepts_them_again_automatically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.writer.RETRY_S", 0.01)
    monkeypatch.setattr("orchestrator.log.sqlite.connection.BUSY_S", 0.01)
    log = await SqliteEventLog.open(tmp_path / "log.db")
    holder = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    history = History("a")
    with pytest.raises(UnavailableError, match=r"database is locked.*another program holds it") as caught:
        await create(log, history)
    assert "disk" not in str(caught.value)
    holder.execute("ROLLBACK")
    holder.close()
    while True:
        try:
            await create(log, history)
            break
        except UnavailableError:
            await asyncio.sleep(0.01)
    assert (await load(log, "a")).prompt == "Build it"
    await log.aclose()


async def test_a_writer_that_ends_fails_every_waiting_call(log: SqliteEventLog) -> None:
    async def broken(_: Sequence[Statement]) -> None:
        raise ZeroDivisionError

    history = History("a")
    log._writer._tables.connection.write = broken  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await create(log, history)
    with pytest.raises(StorageError, match=r"writer has ended.*ZeroDivisionError.*start the service again"):
        await log.watch()
    with pytest.raises(UnavailableError):
        await create(log, history)
    with pytest.raises(StorageError, match="writer has ended"):
        await log.aclose()
    log.aclose = _nothing  # type: ignore[method-assign]


async def test_a_writer_that_ends_after_a_commit_ends_the_watch_and_blocks_no_reader(
    log: SqliteEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    await create(log, History("a"))
    head = await log.head(key("a"))
    async with aclosing(follow(log, head)) as reader:
        assert isinstance(await anext(reader), Page)
        assert await anext(reader) == CaughtUp(1)
        waiting = asyncio.ensure_future(anext(reader))
        reads = 0
        read = log.read

        async def counted(*place: Any) -> Page:
            nonlocal reads
            reads += 1
            return await read(*place)

        monkeypatch.setattr(log, "read", counted)
        monkeypatch.setattr(log._writer._tables, "publish", broken)
        with pytest.raises(UnavailableError):
            await create(log, History("b"))
        with pytest.raises(StorageError, match="writer has ended"):
            await asyncio.wait_for(log.watch(), 5)
        with pytest.raises(UnavailableError):
            await record(log, History("a").planned())
        log.notifier.close()  # as the service does once the watch ends
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(waiting, 5)
    assert reads <= 1
    assert (await load(log, "b")).last_sequence == 1  # it is durable, though it was not acknowledged
    with pytest.raises(StorageError, match="writer has ended"):
        await log.aclose()
    log.aclose = _nothing  # type: ignore[method-assign]


async def _nothing() -> None:
    pass


async def test_the_lock_applies_to_the_file_under_any_name(log: SqliteEventLog, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "log.db")
    with pytest.raises(StorageError, match="in use by another server"):
        await SqliteEventLog.open(tmp_path / "link.db")
    assert log.notifier


async def test_a_long_instance_is_read_in_pages(log: SqliteEventLog) -> None:
    history = History("a")
    await create(log, history)
    page = await read(log, "a", 0, limit=1)
    assert not page.at_end
    assert (await read(log, "a", 1, limit=1)).at_end


async def test_closing_writes_the_queue(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = await SqliteEventLog.open(path)
    history = History("a")
    durable = log.create([creation(history)])
    await log.aclose()
    assert durable.done()
    with pytest.raises(UnavailableError, match="stopping"):
        await create(log, history)
    log = await SqliteEventLog.open(path)
    assert (await load(log, "a")).prompt == "Build it"
    await log.aclose()


async def test_a_failed_deletion_is_reported_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.writer.RETRY_S", 0.01)
    monkeypatch.setattr("orchestrator.log.sqlite.connection.BUSY_S", 0.01)
    log = await SqliteEventLog.open(tmp_path / "log.db")
    history = History("a").terminated()
    await create(log, history)
    holder = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match=r"database is locked.*another program holds it") as caught:
        await delete(log, "a")
    assert caught.value.reason == "STORAGE_READ_ONLY"
    assert await load(log, "a") == history.instance
    holder.execute("ROLLBACK")
    holder.close()
    while True:
        try:
            await delete(log, "a")
            break
        except UnavailableError:
            await asyncio.sleep(0.01)
    assert not log.obstacle
    with pytest.raises(InstanceNotFoundError):
        await load(log, "a")
    await log.aclose()


@pytest.mark.parametrize("reopens", [True, False])
async def test_nothing_is_added_to_a_transaction_that_failed_while_closing(
    reopens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.db"
    log = await SqliteEventLog.open(path)
    ended = await create(log, History("ended").terminated())
    connection = log._writer._tables.connection
    write = connection.write

    async def fail_once(statements: Sequence[Statement]) -> None:
        connection.write = write  # type: ignore[method-assign]
        for statement in statements:
            await connection.execute(*statement)  # the transaction stays open
        raise sqlite3.OperationalError("disk I/O error")

    async def broken(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    if not reopens:
        monkeypatch.setattr("orchestrator.log.sqlite.writer.connect", broken)
    connection.write = fail_once  # type: ignore[method-assign]
    refused = log.create([creation(History("refused"))])
    removed = asyncio.ensure_future(log.delete(ended))
    await asyncio.sleep(0)  # both are queued now
    await log.aclose()
    with pytest.raises(UnavailableError):
        await refused
    outcome = (await asyncio.gather(removed, return_exceptions=True))[0]
    log = await SqliteEventLog.open(path)
    assert await ids(log) == ["ended"]
    assert isinstance(outcome, UnavailableError)
    await log.aclose()


async def test_a_deletion_that_failed_but_reached_the_disk_is_visible_to_all(
    log: SqliteEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.writer.RETRY_S", 0.01)
    history = History("a").terminated()
    await create(log, history)
    write = log._writer._tables.connection.write

    async def write_and_fail(statements: Sequence[Statement]) -> None:
        await write(statements)
        raise sqlite3.OperationalError("disk I/O error")

    log._writer._tables.connection.write = write_and_fail  # type: ignore[method-assign]
    first = log._writer._tables.connection
    await delete(log, "a")
    assert log._writer._tables.connection is not first  # it did fail
    with pytest.raises(InstanceNotFoundError):
        await load(log, "a")
    await create(log, History("b"))
    assert [deleted.position for deleted in (await log.read_all(0)).deletions] == [3]
    assert await log.last_position() == 4


async def test_the_file_rejects_events_that_do_not_follow_the_last_one(log: SqliteEventLog) -> None:
    history, other = History("a"), History("b")
    ref = await create(log, history)
    behind = append(history.planned(), ref, 1)
    await log.append(behind)
    # The writer takes the instance to be at its former sequence.
    rows = log._writer._tables._rows
    rows[ref.incarnation] = rows[ref.incarnation]._replace(last_sequence=1)
    results = await asyncio.gather(log.append(behind), log.create([creation(other)]), return_exceptions=True)
    assert isinstance(results[0], SequenceConflictError)
    assert results[0].last_sequence == len(history.events)
    assert isinstance(results[1], list)
    # And where the events alone would pass, because their place is free.
    beyond = len(history.events) + 7
    rows[ref.incarnation] = rows[ref.incarnation]._replace(last_sequence=beyond)
    event = Event(instance_pause_requested=InstancePauseRequested(), sequence=beyond + 1)
    with pytest.raises(SequenceConflictError):
        await log.append(behind._replace(expected_sequence=beyond, events=[event]))
    assert await load(log, "a") == history.instance


async def test_instances_missing_from_the_writers_cache_are_found_by_one_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.db"
    log = await SqliteEventLog.open(path)
    histories = [History(f"i{number}") for number in range(50)]
    refs = [await create(log, history) for history in histories]
    await log.aclose()
    log = await SqliteEventLog.open(path)
    async with asyncio.timeout(10):
        while log._writer._may_shrink:  # noqa: ASYNC110  its last look at the file is no event
            await asyncio.sleep(0.001)
    queries = 0
    connection = log._writer._tables.connection
    fetchall = connection.execute_fetchall

    async def counted(*query: Any) -> Any:
        nonlocal queries
        queries += 1
        return await fetchall(*query)

    monkeypatch.setattr(connection, "execute_fetchall", counted)
    await asyncio.gather(
        *(log.append(append(history.planned(), ref, 1)) for history, ref in zip(histories, refs, strict=True))
    )
    assert queries == 1
    await log.aclose()


async def test_a_short_read_does_not_wait_for_a_long_one(log: SqliteEventLog) -> None:
    ref = await create(log, History("a"))
    may_end = threading.Event()
    scan = asyncio.create_task(log._scanner._execute(may_end.wait, 20))
    try:
        long_reads = [
            asyncio.create_task(read)
            for read in (
                log.read_all(0),
                log.read_all(0, labels=[("team", "red")]),
                log.list(Query()),
                log.unfinished(),
                log.finished_before(1, 1),
            )
        ]
        assert len((await log.read(ref, 0)).ordinals) == 1
        assert (await log.head(key("a"))).ref == ref
        assert await log.last_position() == 1
        assert await log.check_creation(creation(History("b"))) is None
        assert not any(read.done() for read in long_reads)
    finally:
        may_end.set()
    await asyncio.gather(scan, *long_reads)


@pytest.mark.parametrize("filters", [{}, {"tenant": ""}, {"labels": [("team", "red")]}])
async def test_no_commit_between_the_queries_of_one_read_is_missed(
    filters: dict[str, Any], log: SqliteEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many queries a read is made of: what is committed between two of them is not passed over."""
    number = 0

    async def commit_more() -> None:
        nonlocal number
        number += 1
        ref = await create(log, labelled(f"gone{number}", team="red").terminated())
        await log.delete(ref)
        await create(log, labelled(f"stays{number}", team="red"))

    for connection in (log._reader, log._scanner):
        fetchall = connection.execute_fetchall

        async def and_more_is_committed(*query: Any, fetchall: Any = fetchall) -> Any:
            await commit_more()
            return await fetchall(*query)

        monkeypatch.setattr(connection, "execute_fetchall", and_more_is_committed)
    found_ids: list[str] = []
    cursor = 0
    while number < 20:
        page = await log.read_all(cursor, 5, **filters)
        found_ids += [event.instance_id for event in page.events.events()]
        found_ids += [deleted.ref.id for deleted in page.deletions]
        cursor = page.cursor
    monkeypatch.undo()
    for page in await global_pages(log, cursor, **filters):
        found_ids += [event.instance_id for event in page.events.events()]
        found_ids += [deleted.ref.id for deleted in page.deletions]
    assert [name for name in found_ids if name.startswith("stays")] == [
        f"stays{n}" for n in range(1, number + 1)
    ]
    gone = [name for name in found_ids if name.startswith("gone")]
    assert list(dict.fromkeys(gone)) == [f"gone{n}" for n in range(1, number + 1)]


async def test_a_long_scan_without_a_match_reports_its_progress(
    log: SqliteEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.event_log._SCANNED_POSITIONS", 4)
    for number in range(20):
        await create(log, History(f"i{number}"))
    async with aclosing(follow_all(log, labels=[("team", "red")], live=False, idle_s=0)) as reader:
        steps = [step async for step in reader]
    assert steps[-1] == CaughtUp(20)
    idle = [step.last for step in steps if isinstance(step, Idle)]
    assert idle == sorted(set(idle))
    assert len(idle) >= 2


async def test_a_writer_cancelled_after_a_commit_ends_the_watch(
    log: SqliteEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancelled(_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(log._writer._tables, "publish", cancelled)
    watch = asyncio.create_task(log.watch())
    with pytest.raises(UnavailableError, match="same request_id") as caught:
        await create(log, History("a"))
    assert caught.value.reason == "COMMIT_UNKNOWN"
    with pytest.raises(StorageError, match="was cancelled"):
        await asyncio.wait_for(watch, 5)
    with pytest.raises(UnavailableError) as caught:
        await create(log, History("b"))
    assert caught.value.reason == "SHUTTING_DOWN"
    assert (await load(log, "a")).last_sequence == 1
    with pytest.raises(asyncio.CancelledError):
        await log.aclose()
    log.aclose = _nothing  # type: ignore[method-assign]
