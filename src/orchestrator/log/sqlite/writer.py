"""The one that writes to the SQLite log: group commit, and patience with storage that fails.

One task owns the one connection that writes. Everything queued while the last fsync ran goes into the next
transaction, which pays for one fsync (group commit; DeWitt et al., SIGMOD 1984).
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.errors import RequestError, StorageError, UnavailableError
from orchestrator.log.base import Entry
from orchestrator.log.sqlite.connection import Connection, connect
from orchestrator.log.sqlite.tables import Pending, SqliteTables
from orchestrator.log.storage_faults import mend

_LOGGER: Final = logging.getLogger(__name__)

MOST_ENTRIES_PER_COMMIT: Final = 1000
RETRY_S: Final = 0.5
"""How long to wait before a failed commit is tried again."""


@dataclass(frozen=True, slots=True)
class _AtomicBatch:
    """Creations that become durable all at once or not at all."""

    creations: list[Pending]

    def refuse(self, error: Exception) -> None:
        for pending in self.creations:
            pending.refuse(error)


@dataclass(frozen=True, slots=True)
class _Deletion:
    instance_id: str
    durable: "asyncio.Future[None]"

    def refuse(self, error: Exception) -> None:
        if not self.durable.done():
            self.durable.set_exception(error)
            self.durable.exception()


class SqliteWriter:
    """Makes entries durable in the order they are queued."""

    def __init__(
        self,
        path: Path,
        on_durable: Callable[[Sequence[Entry]], None],
        on_deleted: Callable[[str], None],
    ) -> None:
        """Both are told before anybody's future is done: of a group's entries, and of a deleted id."""
        self._path = path
        self._on_durable = on_durable
        self._on_deleted = on_deleted
        self._tables: SqliteTables
        self._task: asyncio.Task[None]
        self._queue: list[Pending | _AtomicBatch | _Deletion] = []
        self._queued = asyncio.Event()
        self._closing = False
        self._trouble: sqlite3.Error | None = None
        self._retry_time_s = 0.0
        self._published: asyncio.Future[None]

    async def start(self, connection: Connection) -> None:
        """Take over a connection to a database that is up to date, and begin."""
        self._tables = SqliteTables(connection)
        await self._tables.load_counters()
        self._published = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name="event log writer")

    @property
    def position(self) -> int:
        """The position of the last event that readers may be shown."""
        return self._tables.position

    async def wait_until_published(self, position: int) -> None:
        """Wait until what is in the file up to a position is known to all: a matter of a moment."""
        while self.position < position:
            await asyncio.shield(self._published)

    async def watch(self) -> None:
        """Wait for as long as the writer runs; raise what ended it."""
        await asyncio.shield(self._task)

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
        if self._trouble and asyncio.get_running_loop().time() < self._retry_time_s:
            raise self._read_only()

    def append(self, entry: Entry) -> "asyncio.Future[None]":
        """Queue an entry; see EventLog."""
        pending = self._pending(entry)
        self._enqueue(pending, may_wait=not pending.creates)
        return pending.durable

    def append_atomic(self, entries: Sequence[Entry]) -> "Sequence[asyncio.Future[None]]":
        """Queue creations that go together; see EventLog."""
        atomic = _AtomicBatch([self._pending(entry) for entry in entries])
        self._enqueue(atomic)
        return [pending.durable for pending in atomic.creations]

    async def delete(self, instance_id: str) -> None:
        """Remove a finished instance; see EventLog."""
        deletion = _Deletion(instance_id, asyncio.get_running_loop().create_future())
        self._enqueue(deletion)
        await deletion.durable

    def _pending(self, entry: Entry) -> Pending:
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return Pending(entry, durable, self._tables.key, creates=entry.events[0].sequence == 1)

    def _enqueue(self, what: Pending | _AtomicBatch | _Deletion, *, may_wait: bool = False) -> None:
        """Queue it, or refuse it where it cannot wait until the storage takes writes."""
        try:
            if self._closing:
                raise UnavailableError("SHUTTING_DOWN", "the service is stopping: call again")
            if not may_wait:
                self.check_writable()
        except UnavailableError as error:
            what.refuse(error)
            return
        self._queue.append(what)
        self._queued.set()

    def _read_only(self) -> UnavailableError:
        return UnavailableError(
            "STORAGE_READ_ONLY",
            f"{self._told()}; it goes on by itself",
            retry_after_s=RETRY_S,
        )

    def _told(self) -> str:
        if self._trouble is None:
            return "the event log takes no writes"
        return f"the event log takes no writes ({self._trouble}): {mend(self._trouble, self._path)}"

    async def _run(self) -> None:
        group: Sequence[Pending | _AtomicBatch | _Deletion] = ()
        try:
            while not self._closing or self._queue:
                await self._queued.wait()
                self._queued.clear()
                while self._queue:
                    await asyncio.sleep(0)  # what this pass of the loop still brings joins the group
                    match self._queue[0]:
                        case Pending():
                            group = pendings = self._drain_entries()
                            await self._commit(pendings)
                        case _AtomicBatch(creations):
                            group = [self._queue.pop(0)]
                            await self._commit(creations, atomic=True)
                        case _Deletion() as deletion:
                            group = [self._queue.pop(0)]
                            await self._delete(deletion)
        finally:
            # Nobody must wait for a writer that has ended, whatever ended it.
            self._closing = True
            for queued in (*group, *self._queue):
                queued.refuse(UnavailableError("SHUTTING_DOWN", "the event log is closed"))
            if not self._published.done():
                self._published.set_result(None)

    def _drain_entries(self) -> list[Pending]:
        group = []
        for queued in self._queue[:MOST_ENTRIES_PER_COMMIT]:
            if not isinstance(queued, Pending):
                break
            group.append(queued)
        del self._queue[: len(group)]
        return group

    async def _commit(self, group: list[Pending], *, atomic: bool = False) -> None:
        """Make a group durable, however long the storage takes to recover, or until the log is closed."""
        while group:
            try:
                await self._tables.write(group, atomic=atomic)
            except sqlite3.IntegrityError as error:
                await self._commit_individually(group, error, atomic=atomic)
                return
            except sqlite3.Error as error:
                self._on_storage_error(error)
                if not await self._is_committed():
                    group = self._requeue(group)
                    continue
            self._on_storage_recovered()
            self._publish_group(group)
            return

    async def _commit_individually(
        self, group: list[Pending], error: sqlite3.IntegrityError, *, atomic: bool
    ) -> None:
        """An entry that contradicts the log is at fault, not the storage: the others go on without it."""
        await self._tables.connection.rollback()
        if atomic or len(group) == 1:
            for pending in group:
                pending.refuse(StorageError(f"an entry contradicts the log: {error}"))
            return
        for pending in group:
            pending.refusal = None
            await self._commit([pending])

    def _on_storage_error(self, error: sqlite3.Error) -> None:
        is_new = self._trouble is None
        self._trouble = error
        if is_new:
            _LOGGER.warning("%s; trying again", self._told())
        self._retry_time_s = asyncio.get_running_loop().time() + RETRY_S

    def _on_storage_recovered(self) -> None:
        if self._trouble:
            self._trouble = None
            _LOGGER.warning("the event log takes writes again")

    async def _is_committed(self) -> bool:
        """Reopen after a failed commit, and see whether it reached the disk all the same.

        Only the file can tell, so this waits until the file can be read, or the log is closed.
        """
        while not self._closing:
            await asyncio.sleep(RETRY_S)
            try:
                reopened = await connect(self._path, make=False)
                await self._tables.connection.close()
                self._tables.connection = reopened
                return await self._tables.has_new_events()
            except sqlite3.Error as error:
                self._on_storage_error(error)
        return False

    def _requeue(self, group: list[Pending]) -> list[Pending]:
        """What of a group that did not land is tried again: results are, creations are refused."""
        kept = []
        for pending in group:
            if self._closing:
                pending.refuse(UnavailableError("SHUTTING_DOWN", "the service stopped"))
            elif pending.creates:
                self._tables.forget(pending.entry.instance.id)
                pending.refuse(self._read_only())
            else:
                kept.append(pending)
        return kept

    async def _delete(self, deletion: _Deletion) -> None:
        try:
            await self._tables.remove(deletion.instance_id)
        except RequestError as error:
            deletion.refuse(error)
            return
        except sqlite3.Error as error:
            self._on_storage_error(error)
            await (
                self._is_committed()
            )  # for the reopening; whether it landed shows when it is asked for again
            deletion.refuse(self._read_only())
        else:
            self._on_storage_recovered()
            if not deletion.durable.done():
                deletion.durable.set_result(None)
        self._on_deleted(deletion.instance_id)

    def _publish_group(self, group: list[Pending]) -> None:
        """The group is durable: tell those who wait for it."""
        durable = [pending.entry for pending in group if not pending.refusal]
        self._tables.publish(durable)
        self._on_durable(durable)
        self._published.set_result(None)
        self._published = asyncio.get_running_loop().create_future()
        for pending in group:
            if pending.refusal:
                pending.refuse(pending.refusal)
            elif not pending.durable.done():
                pending.durable.set_result(None)
