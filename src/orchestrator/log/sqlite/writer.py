"""The one that writes to the SQLite log: group commit, and patience with storage that fails.

One task owns the one connection that writes. Everything queued while the last fsync ran goes into the next
transaction, which pays for one fsync (group commit; DeWitt et al., SIGMOD 1984).
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from orchestrator.core.identity import InstanceRef
from orchestrator.errors import RequestError, StorageError, UnavailableError
from orchestrator.log.base import Append, Created, Creation, Duplicate, Head, gap
from orchestrator.log.sqlite.connection import Connection, connect
from orchestrator.log.sqlite.tables import CommitGroup, Pending, PendingAppend, PendingCreations, SqliteTables
from orchestrator.log.storage_faults import mend

_LOGGER: Final = logging.getLogger(__name__)

MAX_ENTRIES_PER_COMMIT: Final = 1000
RETRY_S: Final = 0.5
"""How long to wait before a failed commit is tried again."""
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

    def __init__(self, path: Path, on_durable: Callable[[Mapping[InstanceRef, Head | None]], None]) -> None:
        """`on_durable` is called after each commit, with where its instances stand now.

        None: that has to be looked up, or the instance is gone.
        """
        self._path = path
        self._on_durable = on_durable
        self._tables: SqliteTables
        self._task: asyncio.Task[None]
        self._queue: list[Pending] = []
        self._queued = asyncio.Event()
        self._closing = False
        self._may_shrink = True
        """Whether the file may have free pages that its file system has no use of yet."""
        self._storage_error: sqlite3.Error | None = None
        self._retry_time_s = 0.0

    async def start(self, connection: Connection) -> None:
        """Take over a connection to a database that is up to date, and begin."""
        self._tables = SqliteTables(connection)
        await self._tables.load_counters()
        self._task = asyncio.create_task(self._run(), name="event log writer")

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

    def check_writable(self) -> None:
        """Raise UnavailableError (STORAGE_READ_ONLY) while the storage takes no writes.

        Now and then it lets one through nonetheless, which finds out whether that is still so.
        """
        if self._storage_error and asyncio.get_running_loop().time() < self._retry_time_s:
            raise self._read_only()

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
        await self._enqueue(_Deletion(_future(), ref))

    async def store_catalogue(self, digest: str, data: bytes) -> None:
        """Keep a catalogue; see EventLog."""
        await self._enqueue(_Catalogue(_future(), digest, data))

    def _enqueue(self, pending: Pending, *, waits: bool = False) -> "asyncio.Future[Any]":
        """Queue it, or refuse it where it does not wait until the storage takes writes."""
        try:
            if self._closing:
                raise UnavailableError("SHUTTING_DOWN", "the service is stopping: call again")
            if not waits:
                self.check_writable()
        except UnavailableError as error:
            pending.reject(error)
        else:
            self._queue.append(pending)
            self._queued.set()
        return pending.durable

    def _read_only(self) -> UnavailableError:
        return UnavailableError(
            "STORAGE_READ_ONLY",
            f"{self._describe_fault()}; it goes on by itself",
            retry_after_s=RETRY_S,
        )

    def _describe_fault(self) -> str:
        if self._storage_error is None:
            return "the event log takes no writes"
        return (
            f"the event log takes no writes ({self._storage_error}): {mend(self._storage_error, self._path)}"
        )

    async def _run(self) -> None:
        group: Sequence[Pending] = ()
        try:
            while not self._closing or self._queue:
                while self._may_shrink and not self._queued.is_set():
                    self._may_shrink = await self._tables.shrink(_FREED_PAGES)
                await self._queued.wait()
                self._queued.clear()
                while self._queue:
                    await asyncio.sleep(0)  # what this pass of the loop still brings joins the group
                    group = self._drain()
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
                each.reject(_unknown())
            for queued in self._queue:
                queued.reject(UnavailableError("SHUTTING_DOWN", "the event log is closed"))

    def _drain(self) -> Sequence[Pending]:
        """Take from the queue what goes into one transaction."""
        group = list(takewhile(_is_grouped, self._queue[:MAX_ENTRIES_PER_COMMIT])) or self._queue[:1]
        del self._queue[: len(group)]
        return group

    async def _commit(self, pendings: Sequence[Pending], *, alone: bool = False) -> None:
        """Make a group durable, however long the storage takes to recover, or until the log is closed.

        What contradicts the log is tried `alone`, with nothing taken as known, before it is at fault.
        """
        while pendings:
            group = None
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
                self._on_storage_error(error)
                if not await self._is_committed() or group is None:
                    pendings = self._requeue(pendings)
                    continue
            self._on_storage_recovered()
            self._publish(pendings, group)
            return

    def _on_storage_error(self, error: sqlite3.Error) -> None:
        is_new = self._storage_error is None
        self._storage_error = error
        if is_new:
            _LOGGER.error("%s; trying again", self._describe_fault())
        self._retry_time_s = asyncio.get_running_loop().time() + RETRY_S

    def _on_storage_recovered(self) -> None:
        if self._storage_error:
            self._storage_error = None
            _LOGGER.warning("the event log takes writes again")

    async def _is_committed(self) -> bool:
        """Reopen after a failed commit, and see whether it reached the disk all the same.

        Only the file can tell, so this waits until the file can be read. While the log is closing it tries
        once, and raises _ClosedError: nothing else must join a transaction that may still be open.
        """
        while True:
            is_last = self._closing
            if not is_last:
                await asyncio.sleep(RETRY_S)
            try:
                reopened = await connect(self._path, make=False)
                await self._tables.connection.close()
                self._tables.connection = reopened
                return await self._tables.has_new_rows()
            except sqlite3.Error as error:
                self._on_storage_error(error)
                if is_last:
                    raise _ClosedError from error

    def _requeue(self, pendings: Sequence[Pending]) -> Sequence[Pending]:
        """Return what waits for the storage, to be tried again; reject all else."""
        kept = []
        for pending in pendings:
            pending.reset()
            if self._closing:
                pending.reject(UnavailableError("SHUTTING_DOWN", "the service stopped"))
            elif isinstance(pending, PendingAppend) and pending.append.waits_for_storage:
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
            self._on_storage_error(error)
            if not await self._is_committed():
                pending.reject(self._read_only())
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


def _unknown() -> UnavailableError:
    return UnavailableError(
        "COMMIT_UNKNOWN",
        "the service stopped while this was written, and whether it was is not known: "
        "ask again with the same request_id",
    )


def _is_grouped(pending: Pending) -> bool:
    """Return whether it shares a transaction with others; what does not can be taken back as a whole."""
    return isinstance(pending, PendingAppend) or (
        isinstance(pending, PendingCreations) and len(pending.creations) == 1
    )
