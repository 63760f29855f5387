"""The one that writes to the SQLite log: group commit, and patience with storage that fails.

One task owns the one connection that writes. Everything queued while the last fsync ran goes into the next
transaction, which pays for one fsync (group commit; DeWitt et al., SIGMOD 1984).
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, TypeVar

from orchestrator.core.identity import InstanceRef
from orchestrator.errors import RequestError, StorageError, UnavailableError
from orchestrator.log.base import Append, Created, Creation, Duplicate, Head, gap
from orchestrator.log.sqlite.connection import Connection, connect
from orchestrator.log.sqlite.tables import CommitGroup, Pending, PendingAppend, PendingCreations, SqliteTables
from orchestrator.log.storage_faults import is_certainly_not_committed, mend

T = TypeVar("T")

_LOGGER: Final = logging.getLogger(__name__)

MAX_ENTRIES_PER_COMMIT: Final = 1000
RETRY_S: Final = 0.5
"""How long to wait before a failed commit is tried again."""
ANSWER_S: Final = 0.9
"""How long a client waits for one transaction: it is promised an answer within 1 s."""
_TICKS: Final = 9
"""In how many steps that time is counted: a process that gets no time itself is not the storage's fault."""
BUSY_S: Final = 0.25
"""How long a transaction waits for another program's lock before it is tried again."""
CommitCallback = Callable[[int, float], None]
"""Called with how many appends and creations were committed together, and how many seconds that took."""
_FREED_PAGES: Final = 64
"""How many pages the file is made shorter by in one step, while nothing else is queued: about 4 ms."""


@dataclass(slots=True, eq=False)
class _Deletion(Pending):
    ref: InstanceRef


@dataclass(slots=True, eq=False)
class _Lease(Pending):
    ref: InstanceRef


@dataclass(slots=True, eq=False)
class _Catalogue(Pending):
    digest: str
    data: bytes


class _ClosedError(Exception):
    """The storage fails while the log is closing: nothing more is written."""


class SqliteWriter:
    """Makes entries durable in the order they are queued."""

    def __init__(
        self,
        path: Path,
        on_durable: Callable[[Mapping[InstanceRef, Head | None]], None],
        on_commit: CommitCallback,
    ) -> None:
        """`on_durable` is called after each commit, with where its instances stand now.

        None: that has to be looked up, or the instance is gone.
        """
        self._path = path
        self._on_durable = on_durable
        self._on_commit = on_commit
        self._tables: SqliteTables
        self._task: asyncio.Task[None]
        self._queue: list[Pending] = []
        self._queued = asyncio.Event()
        self._closing = False
        self._may_shrink = True
        """Whether the file may have free pages that its file system has no use of yet."""
        self._storage_error: sqlite3.Error | None = None
        self._is_stalled = False
        """Whether a transaction takes longer than clients wait."""
        self._announced = ""
        """What the listener knows of why the storage takes no writes."""
        self._answers: dict[asyncio.Future[Any], asyncio.Future[Any]] = {}
        """What clients wait for, by what is not durable yet."""
        self._on_storage_change: Callable[[str], None] = lambda _obstacle: None

    async def start(
        self,
        connection: Connection,
        fault: sqlite3.Error | None = None,
        on_writable: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Take over a connection to a database that is up to date, and begin.

        With a `fault` it is one that can only read; `on_writable` is called once there is another.
        """
        self._tables = SqliteTables(connection)
        await self._tables.load_counters()
        await connection.execute(f"PRAGMA busy_timeout = {round(BUSY_S * 1000)}")
        try:
            await self._tables.checkpoint()
        except sqlite3.Error as error:
            self._on_storage_error(error)
        if fault:
            self._on_storage_error(fault)
        self._task = asyncio.create_task(self._run(on_writable), name="event log writer")

    @property
    def is_writable(self) -> bool:
        """Whether the storage takes writes, as far as is known."""
        return self._storage_error is None

    @property
    def position(self) -> int:
        """The position of the last event or deletion that is known to be durable."""
        return self._tables.position

    async def watch(self) -> None:
        """Wait for as long as the writer runs; raise what ended it."""
        await asyncio.wait([self._task])
        if self._task.cancelled():  # what waits here was not
            raise StorageError("the event log's writer was cancelled: start the service again")
        self._task.result()

    async def aclose(self) -> None:
        """Write what is queued and close the connection."""
        self._closing = True
        self._queued.set()
        try:
            await self._task
        finally:
            await self._tables.connection.close()

    @property
    def obstacle(self) -> str:
        """Why the storage takes no writes; empty: it does."""
        if self._storage_error:
            return (
                f"the event log takes no writes ({self._storage_error}): "
                f"{mend(self._storage_error, self._path)}"
            )
        if self._is_stalled:
            return f"the event log waits for its disk, which has not answered for {ANSWER_S} s: see to it"
        return ""

    def watch_storage(self, on_change: Callable[[str], None]) -> None:
        """Notify a listener; see EventLog."""
        self._on_storage_change = on_change
        on_change(self.obstacle)

    def answer(self, durable: "asyncio.Future[T]") -> "asyncio.Future[T]":
        """Give what a client waits for; see EventLog."""
        answer = _future()
        self._answers[durable] = answer
        durable.add_done_callback(self._pass_on)
        return answer

    def _pass_on(self, durable: "asyncio.Future[Any]") -> None:
        answer = self._answers.pop(durable)
        if answer.done():
            return
        if durable.cancelled():
            answer.cancel()
        elif error := durable.exception():
            answer.set_exception(error)
            answer.exception()  # its client may have gone
        else:
            answer.set_result(durable.result())

    def create(self, batch: Sequence[Creation]) -> "asyncio.Future[Sequence[Created | Duplicate]]":
        """Queue creations; see EventLog."""
        pending = PendingCreations(_future(), batch)
        for creation in batch:
            if not creation.is_dense:
                pending.reject(gap(creation.key.id))
                return pending.durable
        return self._enqueue(pending)

    def append(self, append: Append) -> "asyncio.Future[None]":
        """Queue events; see EventLog."""
        return self._enqueue(PendingAppend(_future(), append), waits=append.waits_for_storage)

    async def acquire_lease(self, ref: InstanceRef) -> int:
        """Begin a new epoch; see EventLog."""
        epoch: int = await self._enqueue(_Lease(_future(), ref))
        return epoch

    async def delete(self, ref: InstanceRef) -> None:
        """Remove a finished instance; see EventLog."""
        await self.answer(self._enqueue(_Deletion(_future(), ref)))

    async def store_catalogue(self, digest: str, data: bytes) -> None:
        """Keep a catalogue; see EventLog."""
        await self._enqueue(_Catalogue(_future(), digest, data))

    def _enqueue(self, pending: Pending, *, waits: bool = False) -> "asyncio.Future[Any]":
        """Queue it, or reject it where it does not wait until the storage takes writes."""
        if self._closing:
            pending.reject(UnavailableError("SHUTTING_DOWN", "the service is stopping: call again"))
        elif self.obstacle and not waits:
            pending.reject(self._read_only())
        else:
            self._queue.append(pending)
            self._queued.set()
        return pending.durable

    def _read_only(self) -> UnavailableError:
        return UnavailableError(
            "STORAGE_READ_ONLY",
            f"{self.obstacle}; nothing was changed, and the service goes on by itself",
            retry_after_s=RETRY_S,
        )

    def _reject_queued(self) -> None:
        """Answer everybody in the queue who does not wait until the storage takes writes."""
        kept = []
        for pending in self._queue:
            if _waits_for_storage(pending):
                kept.append(pending)
            else:
                pending.reject(self._read_only())
        self._queue[:] = kept

    def _on_stall(self) -> None:
        """Let no client wait longer for a transaction that is under way."""
        self._is_stalled = True
        self._announce()
        self._reject_queued()
        for durable, answer in self._answers.items():
            if not (durable.done() or answer.done()):
                answer.set_exception(_unknown("the storage has not confirmed this in time"))
                answer.exception()  # its client may have gone

    def _on_storage_error(self, error: sqlite3.Error) -> None:
        self._storage_error = error
        self._announce()
        self._reject_queued()

    def _on_storage_recovered(self) -> None:
        self._storage_error, self._is_stalled = None, False
        self._announce()

    def _announce(self) -> None:
        """Notify the listener where the storage has begun or ceased to take writes."""
        before, self._announced = self._announced, self.obstacle
        if self._announced == before:
            return
        if not before:
            _LOGGER.error("%s; trying again", self._announced)
        elif not self._announced:
            _LOGGER.warning("the event log takes writes again")
        self._on_storage_change(self._announced)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Notice where the storage takes longer for what is done here than clients wait."""
        loop, tick_s = asyncio.get_running_loop(), ANSWER_S / _TICKS
        ticks = 0
        watchdog: asyncio.TimerHandle

        def tick() -> None:
            nonlocal watchdog, ticks
            ticks += 1
            if ticks == _TICKS:
                self._on_stall()
            else:
                watchdog = loop.call_later(tick_s, tick)

        watchdog = loop.call_later(tick_s, tick)
        try:
            yield
        finally:
            watchdog.cancel()

    async def _run(self, on_writable: Callable[[], Awaitable[None]] | None) -> None:
        group: Sequence[Pending] = ()
        try:
            if self._storage_error:
                await self._settle()
                if on_writable:
                    await on_writable()
                self._on_storage_recovered()
            while not self._closing or self._queue:
                while self._may_shrink and not self._queued.is_set():
                    with self._watched():
                        self._may_shrink = await self._tables.shrink(_FREED_PAGES)
                await self._queued.wait()
                self._queued.clear()
                while self._queue:
                    await asyncio.sleep(0)  # what this pass of the loop still brings joins the group
                    group = self._drain()
                    with self._watched():
                        await self._write(group)
        except _ClosedError:
            return
        except Exception as error:
            _LOGGER.exception("the event log's writer has ended")
            raise StorageError(
                f"the event log's writer has ended ({type(error).__name__}: {error}): start the service "
                f"again; what was acknowledged is in {self._path}"
            ) from error
        finally:
            # No append may wait for a writer that has ended, by an error or by a cancellation.
            self._closing = True
            for each in group:
                each.reject(_unknown("the service stopped while this was written"))
            for queued in self._queue:
                queued.reject(UnavailableError("SHUTTING_DOWN", "the event log is closed"))

    def _drain(self) -> Sequence[Pending]:
        """Take from the queue what goes into one transaction."""
        group = list(takewhile(_is_grouped, self._queue[:MAX_ENTRIES_PER_COMMIT])) or self._queue[:1]
        del self._queue[: len(group)]
        return group

    async def _write(self, group: Sequence[Pending]) -> None:
        match group[0]:
            case _Deletion(ref=ref) as pending:
                await self._commit_alone(pending, self._tables.remove(ref), ref)
                self._may_shrink = True
            case _Lease(ref=ref) as pending:
                await self._commit_alone(pending, self._tables.acquire_lease(ref), ref)
            case _Catalogue(digest=digest, data=data) as pending:
                await self._commit_alone(pending, self._tables.store_catalogue(digest, data))
            case _:
                await self._commit(group)

    async def _commit(self, pendings: Sequence[Pending], *, alone: bool = False) -> None:
        """Make a group durable, however long the storage takes to recover, or until the log is closed.

        What contradicts the log is tried `alone`, with nothing taken as known, before it is at fault.
        """
        while pendings:
            group = None
            begin_s = time.monotonic()
            try:
                group = await self._tables.prepare(pendings)
                if not _is_grouped(pendings[0]) and pendings[0].rejection:
                    await self._tables.connection.rollback()
                    pendings[0].reject(pendings[0].rejection)
                    return
                await self._tables.commit(group)
            except sqlite3.IntegrityError as error:
                await self._tables.roll_back()
                if alone:
                    pendings[0].reject(StorageError(f"an entry contradicts the log: {error}"))
                    return
                for pending in pendings:
                    pending.reset()
                    await self._commit([pending], alone=True)
                return
            except sqlite3.Error as error:
                if not await self._has_reached_the_file(error, pendings) or group is None:
                    pendings = self._requeue(pendings)
                    continue
            self._on_storage_recovered()
            self._on_commit(len(pendings), time.monotonic() - begin_s)
            self._publish(pendings, group)
            return
        self._on_storage_recovered()

    async def _has_reached_the_file(self, error: sqlite3.Error, pendings: Sequence[Pending]) -> bool:
        """Find out what came of a transaction that failed, and answer those at once who wait for no more.

        This takes until the storage takes writes again.
        """
        is_first = self._storage_error is None
        self._on_storage_error(error)
        if is_certainly_not_committed(error):
            for pending in pendings:
                if not _waits_for_storage(pending):
                    pending.reject(self._read_only())
        return await self._settle(at_once=is_first)

    async def _settle(self, *, at_once: bool = False) -> bool:
        """Reopen after a failed transaction; return whether it reached the file, once that is final.

        A commit whose sync has failed may lie in the WAL unseen, for the next start to find: only once
        another one is durable in its place is it certain that it never was. So this waits until the storage
        takes writes; `at_once`: the first time it does not. While the log is closing it tries once and raises
        _ClosedError: nothing else must join a transaction that may still be open.
        """
        while True:
            is_last = self._closing
            if not (is_last or at_once):
                await asyncio.sleep(RETRY_S)
            at_once = False
            try:
                reopened = await connect(self._path, make=False, busy_s=BUSY_S)
                failed, self._tables.connection = self._tables.connection, reopened
                await failed.close()
                is_committed = await self._tables.has_new_rows()
                try:
                    await self._tables.overwrite_failed_commit()
                except sqlite3.Error:  # it may have been the last fault
                    await self._tables.roll_back()
                    await self._tables.overwrite_failed_commit()
            except sqlite3.Error as error:
                self._on_storage_error(error)
                if is_last:
                    raise _ClosedError from error
            else:
                return is_committed

    def _requeue(self, pendings: Sequence[Pending]) -> Sequence[Pending]:
        """Return what waits for the storage, to be tried again; reject all else."""
        kept = []
        for pending in pendings:
            pending.reset()
            if self._closing:
                pending.reject(UnavailableError("SHUTTING_DOWN", "the service stopped"))
            elif _waits_for_storage(pending):
                kept.append(pending)
            else:
                pending.reject(self._read_only())
        return kept

    async def _commit_alone(
        self, pending: Pending, write: Coroutine[None, None, object], *refs: InstanceRef
    ) -> None:
        result = None
        try:
            result = await write
        except RequestError as error:
            pending.reject(error)
            return
        except sqlite3.Error as error:
            if not await self._has_reached_the_file(error, [pending]):
                self._requeue([pending])
                self._on_storage_recovered()
                return
            await self._tables.load_counters()  # only a deletion takes a position: it is durable
        self._on_storage_recovered()
        if not pending.durable.done():
            pending.durable.set_result(result)
        self._on_durable(dict.fromkeys(refs))

    def _publish(self, pendings: Sequence[Pending], group: CommitGroup) -> None:
        """Wake readers, and those who wait for a group that is durable."""
        self._tables.publish(group)
        for pending in pendings:
            if pending.rejection:
                pending.reject(pending.rejection)
            elif not pending.durable.done():
                pending.durable.set_result(
                    pending.outcomes if isinstance(pending, PendingCreations) else None
                )
        # Last, so that writers are notified before readers: they may have the state at hand that those want.
        self._on_durable(group.heads)


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


def _unknown(cause: str) -> UnavailableError:
    return UnavailableError(
        "COMMIT_UNKNOWN",
        f"{cause}, and whether it is recorded is not known: ask again, to create an instance with the same "
        "request_id, and for all else look at the instance first",
        retry_after_s=RETRY_S,
    )


def _waits_for_storage(pending: Pending) -> bool:
    """Return whether it waits until the storage takes writes: no client waits for it."""
    return isinstance(pending, PendingAppend) and pending.append.waits_for_storage


def _is_grouped(pending: Pending) -> bool:
    """Return whether it shares a transaction with others; what does not can be taken back as a whole."""
    return isinstance(pending, PendingAppend) or (
        isinstance(pending, PendingCreations) and len(pending.creations) == 1
    )
