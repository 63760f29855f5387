"""The one that writes to the SQLite log: group commit, and patience with storage that fails.

One task owns the one connection that writes. Everything queued while the last fsync ran goes into the next
transaction, which pays for one fsync (group commit; DeWitt et al., SIGMOD 1984).

Rows go in as few statements as possible: SQLite releases the interpreter's lock for each statement it steps,
and a busy event loop is slow to give it back.
"""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, Final

import aiosqlite

from orchestrator.core.state import TERMINAL, Instance, State
from orchestrator.core.wire import STATUS
from orchestrator.errors import (
    InstanceNotFoundError,
    RequestError,
    StateForbidsError,
    StorageError,
    UnavailableError,
)
from orchestrator.log.base import DuplicateRequest, Entry, framed
from orchestrator.log.conflict import conflict
from orchestrator.log.sqlite_connection import connect, fetch

_LOGGER: Final = logging.getLogger(__name__)

ROWS_PER_STATEMENT: Final = 256
MOST_ENTRIES_PER_COMMIT: Final = 1000
RETRY_S: Final = 0.5
"""How long to wait before a failed commit is tried again."""


@dataclass(slots=True)
class _Pending:
    entry: Entry
    durable: "asyncio.Future[None]"
    creates: bool
    refusal: Exception | None = None
    """Why the entry is left out of its group; told only once the group is durable, because the reason may
    lie in the same group."""

    def refuse(self, error: Exception) -> None:
        if not self.durable.done():
            self.durable.set_exception(error)
            self.durable.exception()  # whoever queued it without waiting does not want to know


@dataclass(frozen=True, slots=True)
class _Together:
    """Creations that become durable all at once or not at all."""

    creations: list[_Pending]

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


@dataclass(slots=True)
class _Row:
    """What the table `instance` holds of an unfinished instance."""

    key: int
    state: State


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
        self._connection: aiosqlite.Connection
        self._task: asyncio.Task[None]
        self._queue: list[_Pending | _Together | _Deletion] = []
        self._queued = asyncio.Event()
        self._closing = False
        self._trouble = ""
        self._retry_time_s = 0.0
        self._position = 0
        self._key = 0
        self._rows: dict[str, _Row] = {}
        self._settled: asyncio.Future[None]

    async def start(self, connection: aiosqlite.Connection) -> None:
        """Take over a connection to a database that is up to date, and begin."""
        self._connection = connection
        self._position = await self._highest("position", "event")
        self._key = await self._highest("key", "instance")
        self._settled = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name="event log writer")

    @property
    def position(self) -> int:
        """The position of the last event that readers may be shown."""
        return self._position

    async def settled(self, position: int) -> None:
        """Wait until what is in the file up to a position is known to all: a matter of a moment."""
        while self._position < position:
            await asyncio.shield(self._settled)

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
            await self._connection.close()

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

    def append_together(self, entries: Sequence[Entry]) -> "Sequence[asyncio.Future[None]]":
        """Queue creations that go together; see EventLog."""
        together = _Together([self._pending(entry) for entry in entries])
        self._enqueue(together)
        return [pending.durable for pending in together.creations]

    async def delete(self, instance_id: str) -> None:
        """Remove a finished instance; see EventLog."""
        deletion = _Deletion(instance_id, asyncio.get_running_loop().create_future())
        self._enqueue(deletion)
        await deletion.durable

    def _pending(self, entry: Entry) -> _Pending:
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return _Pending(entry, durable, creates=entry.events[0].sequence == 1)

    def _enqueue(self, what: _Pending | _Together | _Deletion, *, may_wait: bool = False) -> None:
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
            f"the event log takes no writes ({self._trouble}): free disk space or mend the database; "
            "it goes on by itself",
            retry_after_s=RETRY_S,
        )

    async def _run(self) -> None:
        group: Sequence[_Pending | _Together | _Deletion] = ()
        try:
            while not self._closing or self._queue:
                await self._queued.wait()
                self._queued.clear()
                while self._queue:
                    await asyncio.sleep(0)  # what this pass of the loop still brings joins the group
                    match self._queue[0]:
                        case _Pending():
                            group = pendings = self._take_entries()
                            await self._commit(pendings)
                        case _Together(creations):
                            group = [self._queue.pop(0)]
                            await self._commit(creations, together=True)
                        case _Deletion() as deletion:
                            group = [self._queue.pop(0)]
                            await self._delete(deletion)
        finally:
            # Nobody must wait for a writer that has ended, whatever ended it.
            self._closing = True
            for queued in (*group, *self._queue):
                queued.refuse(UnavailableError("SHUTTING_DOWN", "the event log is closed"))
            if not self._settled.done():
                self._settled.set_result(None)

    def _take_entries(self) -> list[_Pending]:
        entries = takewhile(lambda queued: isinstance(queued, _Pending), self._queue)
        group = [
            queued for queued in islice(entries, MOST_ENTRIES_PER_COMMIT) if isinstance(queued, _Pending)
        ]
        del self._queue[: len(group)]
        return group

    async def _commit(self, group: list[_Pending], *, together: bool = False) -> None:
        """Make a group durable, however long the storage takes to recover, or until the log is closed."""
        while group:
            try:
                await self._transact(group, together=together)
            except sqlite3.IntegrityError as error:
                await self._apart(group, error, together=together)
                return
            except sqlite3.Error as error:
                self._note(error)
                if not await self._has_landed():
                    group = self._kept(group)
                    continue
            self._note_success()
            self._settle(group)
            return

    async def _apart(self, group: list[_Pending], error: sqlite3.IntegrityError, *, together: bool) -> None:
        """An entry that contradicts the log is at fault, not the storage: the others go on without it."""
        await self._connection.rollback()
        if together or len(group) == 1:
            for pending in group:
                pending.refuse(StorageError(f"an entry contradicts the log: {error}"))
            return
        for pending in group:
            pending.refusal = None
            await self._commit([pending])

    def _note(self, error: sqlite3.Error) -> None:
        if not self._trouble:
            _LOGGER.warning("the event log takes no writes (%s); trying again", error)
        self._trouble = str(error)
        self._retry_time_s = asyncio.get_running_loop().time() + RETRY_S

    def _note_success(self) -> None:
        if self._trouble:
            self._trouble = ""
            _LOGGER.warning("the event log takes writes again")

    async def _has_landed(self) -> bool:
        """Reopen after a failed commit, and see whether it reached the disk all the same.

        Only the file can tell, so this waits until the file can be read, or the log is closed.
        """
        while not self._closing:
            await asyncio.sleep(RETRY_S)
            try:
                reopened = await connect(self._path, make=False)
                await self._connection.close()
                self._connection = reopened
                return await self._highest("position", "event") > self._position
            except sqlite3.Error as error:
                self._note(error)
        return False

    def _kept(self, group: list[_Pending]) -> list[_Pending]:
        """What of a group that did not land is tried again: results are, creations are refused."""
        kept = []
        for pending in group:
            if self._closing:
                pending.refuse(UnavailableError("SHUTTING_DOWN", "the service stopped"))
            elif pending.creates:
                self._rows.pop(pending.entry.instance.id, None)
                pending.refuse(self._read_only())
            else:
                kept.append(pending)
        return kept

    async def _delete(self, deletion: _Deletion) -> None:
        try:
            await self._remove(deletion.instance_id)
        except RequestError as error:
            deletion.refuse(error)
            return
        except sqlite3.Error as error:
            self._note(error)
            await self._has_landed()  # for the reopening; whether it landed shows when it is asked for again
            deletion.refuse(self._read_only())
        else:
            self._note_success()
            if not deletion.durable.done():
                deletion.durable.set_result(None)
        self._on_deleted(deletion.instance_id)

    async def _remove(self, instance_id: str) -> None:
        rows = await fetch(self._connection, "SELECT key, state FROM instance WHERE id = ?", (instance_id,))
        if not rows:
            raise InstanceNotFoundError(instance_id)
        key, state = rows[0]
        if state not in TERMINAL:
            raise StateForbidsError(instance_id, state=STATUS[state], action="delete")
        connection = self._connection
        await connection.execute("DELETE FROM event WHERE instance = ?", (key,))
        await connection.execute("DELETE FROM label WHERE instance = ?", (key,))
        await connection.execute("DELETE FROM instance WHERE key = ?", (key,))
        await connection.execute("UPDATE given SET position = ?, key = ?", (self._position, self._key))
        await connection.commit()

    async def _transact(self, group: list[_Pending], *, together: bool) -> None:
        creations = [pending for pending in group if pending.creates]
        if creations:
            await self._create(creations)
        if together and (fault := _fault(group)):
            await self._connection.rollback()
            for pending in group:
                self._rows.pop(pending.entry.instance.id, None)
                pending.refusal = fault
            return
        await self._find_rows(group)
        accepted = [pending.entry for pending in group if not pending.refusal]
        await self._insert_events(accepted)
        await self._update_states(accepted)
        await self._connection.commit()

    async def _create(self, creations: list[_Pending]) -> None:
        rows = []
        for key, pending in enumerate(creations, self._key + 1):
            instance = pending.entry.instance
            digest = instance.request_digest.hex()
            request_id = instance.request_id or None
            rows.append((key, instance.id, instance.state, request_id, digest, instance.end_time_s))
        created = await self._insert(
            "INSERT INTO instance (key, id, state, request_id, request_digest, end_time_s) VALUES",
            rows,
            "ON CONFLICT DO NOTHING RETURNING key",
        )
        keys = {row[0] for row in created}
        labels = []
        for row, pending in zip(rows, creations, strict=True):
            instance = pending.entry.instance
            if row[0] in keys:
                self._rows[instance.id] = _Row(row[0], instance.state)
                labels += [(row[0], name, value) for name, value in instance.labels.items()]
            else:
                pending.refusal = await self._conflict(instance)
        await self._insert("INSERT INTO label (instance, name, value) VALUES", labels)

    async def _insert(
        self, statement: str, rows: Sequence[tuple[Any, ...]], ending: str = ""
    ) -> Sequence[sqlite3.Row]:
        """Insert rows by as few statements as possible; what the statements return."""
        returned: list[sqlite3.Row] = []
        for start in range(0, len(rows), ROWS_PER_STATEMENT):
            chunk = rows[start : start + ROWS_PER_STATEMENT]
            places = f"({','.join('?' * len(chunk[0]))})"
            query = f"{statement} {','.join([places] * len(chunk))} {ending}"
            returned += await fetch(self._connection, query, list(chain.from_iterable(chunk)))
        return returned

    async def _conflict(self, wanted: Instance) -> Exception:
        rows = await fetch(
            self._connection,
            "SELECT id, coalesce(request_id, ''), request_digest FROM instance"
            " WHERE id = ?1 OR request_id = nullif(?2, '') ORDER BY request_id IS NOT nullif(?2, '') LIMIT 1",
            (wanted.id, wanted.request_id),
        )
        if not rows:
            return StorageError(f"instance {wanted.id!r} could not be recorded")
        taken = Instance(id=rows[0][0], request_id=rows[0][1], request_digest=bytes.fromhex(rows[0][2]))
        return conflict(wanted, taken) or StorageError(f"instance {wanted.id!r} could not be recorded")

    async def _find_rows(self, group: list[_Pending]) -> None:
        for pending in group:
            instance_id = pending.entry.instance.id
            if instance_id in self._rows or pending.refusal:
                continue
            found = await fetch(
                self._connection, "SELECT key, state FROM instance WHERE id = ?", (instance_id,)
            )
            if found:
                self._rows[instance_id] = _Row(*found[0])
            else:
                pending.refusal = InstanceNotFoundError(instance_id)

    async def _insert_events(self, entries: list[Entry]) -> None:
        rows = []
        position = self._position
        for entry in entries:
            key = self._rows[entry.instance.id].key
            for event in entry.events:
                position += 1
                rows.append((position, key, event.sequence, framed(event)))
        await self._insert("INSERT INTO event (position, instance, sequence, data) VALUES", rows)

    async def _update_states(self, entries: list[Entry]) -> None:
        changes = {}
        for entry in entries:
            row = self._rows[entry.instance.id]
            if row.state != entry.instance.state:
                changes[row.key] = (row.key, entry.instance.state, entry.instance.end_time_s)
        if changes:
            await self._connection.execute(
                "UPDATE instance SET state = change.value ->> 1, end_time_s = change.value ->> 2"
                " FROM json_each(?) AS change WHERE instance.key = change.value ->> 0",
                (json.dumps(list(changes.values())),),
            )

    def _settle(self, group: list[_Pending]) -> None:
        """The group is durable: tell those who wait for it."""
        durable = [pending.entry for pending in group if not pending.refusal]
        for entry in durable:
            self._position += len(entry.events)
            row = self._rows[entry.instance.id]
            row.state = entry.instance.state
            self._key = max(self._key, row.key)
        for entry in durable:
            if entry.instance.state in TERMINAL:
                self._rows.pop(entry.instance.id, None)
        self._on_durable(durable)
        self._settled.set_result(None)
        self._settled = asyncio.get_running_loop().create_future()
        for pending in group:
            if pending.refusal:
                pending.refuse(pending.refusal)
            elif not pending.durable.done():
                pending.durable.set_result(None)

    async def _highest(self, number: str, table: str) -> int:
        """The highest position or key ever given, also to what has been deleted since."""
        query = f"SELECT max(given.{number}, coalesce((SELECT max({number}) FROM {table}), 0)) FROM given"  # noqa: S608
        highest: int = (await fetch(self._connection, query))[0][0]
        return highest


def _fault(creations: Sequence[_Pending]) -> Exception | None:
    """What stands against creating them all: a repeated request does not."""
    refusals = [pending.refusal for pending in creations]
    return next((error for error in refusals if error and not isinstance(error, DuplicateRequest)), None)
