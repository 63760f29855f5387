"""The event log on SQLite.

One task owns the one connection that writes, and commits in groups: everything queued while the last fsync
ran goes into the next transaction, which pays for one fsync (group commit; DeWitt et al., SIGMOD 1984).
Readers have a connection of their own that can only query. No statement's cursor outlives a call, so the WAL
can always be checkpointed.

Rows go in as few statements as possible: SQLite releases the interpreter's lock for each statement it steps,
and a busy event loop is slow to give it back.
"""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Final, Self

import aiosqlite

from orchestrator.core.state import TERMINAL, Instance, State, fold
from orchestrator.errors import InstanceNotFoundError, StorageError, UnavailableError
from orchestrator.log.base import PAGE_BYTES, PAGE_EVENTS, Entry, Page, Wakeups, framed
from orchestrator.log.conflict import conflict
from orchestrator.log.lock import DatabaseLock
from orchestrator.log.schema import migrate
from orchestrator.v1 import instance_pb2 as pb

_LOGGER: Final = logging.getLogger(__name__)

_ROWS_PER_STATEMENT: Final = 256
_MOST_ENTRIES_PER_COMMIT: Final = 1000
_MOST_FINISHED_CHARACTERS: Final = 16 * 1024 * 1024
"""How much text the finished instances may hold whose folded state is kept at hand."""
_RETRY_S: Final = 0.5
"""How long to wait before a failed commit is tried again."""
_BUSY_S: Final = 5.0
"""How long SQLite waits for another program's lock."""


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


class SqliteEventLog:
    """An EventLog in one SQLite file, for one server at a time. Make it with `open`."""

    def __init__(self, path: Path, lock: DatabaseLock) -> None:
        self.wakeups = Wakeups()
        self._path = path
        self._lock = lock
        self._writer: aiosqlite.Connection
        self._reader: aiosqlite.Connection
        self._writing: asyncio.Task[None]
        self._queue: list[_Pending] = []
        self._queued = asyncio.Event()
        self._closing = False
        self._trouble = ""
        self._position = 0
        self._key = 0
        self._keys: dict[str, int] = {}
        self._unfinished: dict[str, Instance] = {}
        self._finished: dict[str, Instance] = {}
        self._finished_characters = 0

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or make the log at a path; raise StorageError that says what is in the way."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = DatabaseLock(path)
        except OSError as error:
            raise StorageError(
                f"database {path} cannot be opened ({error.strerror}): "
                "set ORCHESTRATOR_DATABASE to a path that this user may write"
            ) from None
        log = cls(path, lock)
        try:
            await log._connect()
        except BaseException:
            lock.release()
            raise
        log._writing = asyncio.create_task(log._write(), name="event log writer")
        return log

    async def _connect(self) -> None:
        self._writer = await _connection(self._path)
        try:
            try:
                await self._writer.execute("PRAGMA journal_mode = WAL")
                await self._writer.execute("PRAGMA synchronous = FULL")
                await migrate(self._writer, self._path)
                self._reader = await _connection(self._path)
            except sqlite3.Error as error:
                raise _cannot_open(self._path, error) from None
            await self._reader.execute("PRAGMA query_only = ON")
            await self._reader.execute("PRAGMA wal_autocheckpoint = 0")
            self._position = await self._highest("SELECT max(position) FROM event")
            self._key = await self._highest("SELECT max(key) FROM instance")
        except BaseException:
            await self._writer.close()
            raise

    async def _highest(self, query: str) -> int:
        rows = await _fetch(self._writer, query)
        return rows[0][0] or 0

    # Writing

    def append(self, entry: Entry) -> "asyncio.Future[None]":
        """Queue an entry; see EventLog."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pending = _Pending(entry, durable, creates=entry.events[0].sequence == 1)
        if self._closing:
            pending.refuse(UnavailableError("SHUTTING_DOWN", "the service is stopping: call again"))
        elif self._trouble and pending.creates:
            pending.refuse(self._read_only())
        else:
            self._queue.append(pending)
            self._queued.set()
        return durable

    def _read_only(self) -> UnavailableError:
        return UnavailableError(
            "STORAGE_READ_ONLY",
            f"the event log takes no writes ({self._trouble}): free disk space or mend the database; "
            "it goes on by itself",
            retry_after_s=_RETRY_S,
        )

    async def _write(self) -> None:
        while True:
            await self._queued.wait()
            self._queued.clear()
            while self._queue:
                group, self._queue = (
                    self._queue[:_MOST_ENTRIES_PER_COMMIT],
                    self._queue[_MOST_ENTRIES_PER_COMMIT:],
                )
                await self._commit(group)
            if self._closing:
                return

    async def _commit(self, group: list[_Pending]) -> None:
        """Make a group durable, however long the storage takes to recover, or until the log is closed."""
        while group:
            try:
                await self._transact(group)
            except sqlite3.IntegrityError as error:
                # An entry that contradicts the log is at fault, not the storage: the others go on.
                await self._writer.rollback()
                if len(group) == 1:
                    group[0].refuse(StorageError(f"an entry contradicts the log: {error}"))
                    return
                for pending in group:
                    pending.refusal = None
                    await self._commit([pending])
                return
            except sqlite3.Error as error:
                if not self._trouble:
                    _LOGGER.warning("the event log takes no writes (%s); trying again", error)
                self._trouble = str(error)
                if not await self._recovered():
                    group = self._without_creations(group)
                    if not self._closing:
                        continue
                    for pending in group:
                        pending.refuse(UnavailableError("SHUTTING_DOWN", "the service stopped"))
                    return
            if self._trouble:
                self._trouble = ""
                _LOGGER.warning("the event log takes writes again")
            self._settle(group)
            return

    async def _transact(self, group: list[_Pending]) -> None:
        creations = [pending for pending in group if pending.creates]
        if creations:
            await self._create(creations)
        await self._look_up_keys(group)
        accepted = [pending for pending in group if not pending.refusal]
        await self._insert_events(accepted)
        await self._update_states(accepted)
        await self._writer.commit()

    async def _create(self, creations: list[_Pending]) -> None:
        rows = []
        for key, pending in enumerate(creations, self._key + 1):
            instance = pending.entry.instance
            digest = instance.request_digest.hex()
            rows.append((key, instance.id, instance.state, instance.request_id or None, digest))
        created = await _fetch(
            self._writer,
            "INSERT INTO instance (key, id, state, request_id, request_digest)"
            " SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4"
            " FROM json_each(?) WHERE true ON CONFLICT DO NOTHING RETURNING key",
            (json.dumps(rows),),
        )
        keys = {row[0] for row in created}
        labels = []
        for row, pending in zip(rows, creations, strict=True):
            instance = pending.entry.instance
            if row[0] in keys:
                self._keys[instance.id] = row[0]
                labels += [(row[0], name, value) for name, value in instance.labels.items()]
            else:
                pending.refusal = await self._conflict(instance)
        if labels:
            await self._writer.execute(
                "INSERT INTO label (instance, name, value)"
                " SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)",
                (json.dumps(labels),),
            )

    async def _conflict(self, wanted: Instance) -> Exception:
        rows = await _fetch(
            self._writer,
            "SELECT id, coalesce(request_id, ''), request_digest FROM instance"
            " WHERE id = ?1 OR request_id = nullif(?2, '') ORDER BY request_id IS NOT nullif(?2, '') LIMIT 1",
            (wanted.id, wanted.request_id),
        )
        taken = Instance(id=rows[0][0], request_id=rows[0][1], request_digest=bytes.fromhex(rows[0][2]))
        return conflict(wanted, taken) or StorageError(f"instance {wanted.id!r} could not be recorded")

    async def _insert_events(self, group: list[_Pending]) -> None:
        rows: list[Any] = []
        position = self._position
        for pending in group:
            key = self._keys[pending.entry.instance.id]
            for event in pending.entry.events:
                position += 1
                rows += (position, key, event.sequence, framed(event))
        width = 4
        step = _ROWS_PER_STATEMENT * width
        for start in range(0, len(rows), step):
            values = rows[start : start + step]
            places = ",".join(("(?,?,?,?)",) * (len(values) // width))
            await self._writer.execute(
                f"INSERT INTO event (position, instance, sequence, data) VALUES {places}",  # noqa: S608
                values,
            )

    async def _update_states(self, group: list[_Pending]) -> None:
        states = {
            self._keys[pending.entry.instance.id]: pending.entry.instance.state
            for pending in group
            if pending.creates or pending.entry.instance.state != self._known_state(pending)
        }
        if states:
            await self._writer.execute(
                "UPDATE instance SET state = change.value ->> 1 FROM json_each(?) AS change"
                " WHERE instance.key = change.value ->> 0",
                (json.dumps(list(states.items())),),
            )

    def _known_state(self, pending: _Pending) -> State:
        known = self._unfinished.get(pending.entry.instance.id)
        return known.state if known else pb.STATE_UNSPECIFIED

    async def _look_up_keys(self, group: list[_Pending]) -> None:
        for pending in group:
            instance_id = pending.entry.instance.id
            if instance_id in self._keys or pending.refusal:
                continue
            rows = await _fetch(self._writer, "SELECT key FROM instance WHERE id = ?", (instance_id,))
            if rows:
                self._keys[instance_id] = rows[0][0]
            else:
                pending.refusal = InstanceNotFoundError(instance_id)

    def _settle(self, group: list[_Pending]) -> None:
        """The group is durable: tell those who wait for it."""
        for pending in group:
            if pending.refusal:
                pending.refuse(pending.refusal)
                continue
            instance = pending.entry.instance
            self._position += len(pending.entry.events)
            if pending.creates:
                self._key = self._keys[instance.id]
            if instance.state in TERMINAL:
                self._unfinished.pop(instance.id, None)
                self._keep_finished(instance)
            else:
                self._forget_finished(instance.id)
                self._unfinished[instance.id] = instance
            if not pending.durable.done():
                pending.durable.set_result(None)
        ids = [pending.entry.instance.id for pending in group]
        for instance_id in ids:
            if instance_id not in self._unfinished:
                self._keys.pop(instance_id, None)
        self.wakeups.wake(ids)

    async def _recovered(self) -> bool:
        """Reopen after a failed commit; whether the group turns out to be durable all the same.

        A COMMIT that failed may have reached the disk: only the file can tell.
        """
        await asyncio.sleep(_RETRY_S)
        try:
            await self._writer.close()
            self._writer = await _connection(self._path)
            await self._writer.execute("PRAGMA synchronous = FULL")
            return await self._highest("SELECT max(position) FROM event") > self._position
        except sqlite3.Error as error:
            self._trouble = str(error)
            return False

    def _without_creations(self, group: list[_Pending]) -> list[_Pending]:
        for pending in group:
            if pending.creates:
                self._keys.pop(pending.entry.instance.id, None)
                pending.refuse(self._read_only())
        return [pending for pending in group if not pending.creates]

    # Reading

    def _keep_finished(self, instance: Instance) -> None:
        self._forget_finished(instance.id)
        self._finished[instance.id] = instance
        self._finished_characters += _characters(instance)
        while self._finished_characters > _MOST_FINISHED_CHARACTERS:
            self._forget_finished(next(iter(self._finished)))

    def _forget_finished(self, instance_id: str) -> None:
        if known := self._finished.pop(instance_id, None):
            self._finished_characters -= _characters(known)

    async def load(self, instance_id: str) -> Instance:
        """Fold an instance from its durable events; see EventLog."""
        known = self._unfinished.get(instance_id) or self._finished.get(instance_id)
        if known:
            return known
        instance = Instance()
        at_end = False
        while not at_end:
            page = await self.read(instance_id, instance.last_sequence)
            instance = fold(page.events(), instance)
            at_end = page.at_end
        if instance.state in TERMINAL:
            self._keep_finished(instance)
        return instance

    async def read(self, instance_id: str, after: int, limit: int = PAGE_EVENTS) -> Page:
        """Read a page of one instance; see EventLog."""
        rows = await _fetch(
            self._reader,
            "SELECT instance.state, event.sequence, event.data FROM instance"
            " LEFT JOIN event ON event.instance = instance.key AND event.sequence > ?2"
            " WHERE instance.id = ?1 ORDER BY event.sequence LIMIT ?3",
            (instance_id, after, limit),
        )
        if not rows:
            raise InstanceNotFoundError(instance_id)
        if rows[0][1] is None:
            return Page(b"", (), at_end=True, state=rows[0][0])
        return _page(rows, limit, rows[0][0])

    async def read_all(self, after: int, limit: int = PAGE_EVENTS) -> Page:
        """Read a page of all instances; see EventLog."""
        rows = await _fetch(
            self._reader,
            "SELECT 0, position, data FROM event WHERE position > ? ORDER BY position LIMIT ?",
            (after, limit),
        )
        return _page(rows, limit, pb.STATE_UNSPECIFIED)

    async def find(
        self,
        *,
        states: Sequence[State] = (),
        labels: Sequence[tuple[str, str]] = (),
        before: int = 0,
        limit: int,
    ) -> Sequence[tuple[int, str]]:
        """Find instances, newest first; see EventLog."""
        conditions = ["true"]
        values: list[Any] = []
        if before:
            conditions.append("key < ?")
            values.append(before)
        if states:
            conditions.append(f"state IN ({','.join('?' * len(states))})")
            values += states
        for name, value in labels:
            conditions.append("key IN (SELECT instance FROM label WHERE name = ? AND value = ?)")
            values += (name, value)
        rows = await _fetch(
            self._reader,
            f"SELECT key, id FROM instance WHERE {' AND '.join(conditions)} ORDER BY key DESC LIMIT ?",  # noqa: S608
            (*values, limit),
        )
        return [(row[0], row[1]) for row in rows]

    async def unfinished(self) -> Sequence[str]:
        """Ids of all instances in no terminal state; see EventLog."""
        terminal = ",".join(str(state) for state in sorted(TERMINAL))
        rows = await _fetch(
            self._reader,
            f"SELECT id FROM instance WHERE state NOT IN ({terminal}) ORDER BY key",  # noqa: S608
        )
        return [row[0] for row in rows]

    async def aclose(self) -> None:
        """Write what is queued, then close both connections and give up the lock."""
        self._closing = True
        self._queued.set()
        try:
            await self._writing
        finally:
            await self._reader.close()
            await self._writer.close()
            self._lock.release()


async def _connection(path: Path) -> aiosqlite.Connection:
    try:
        return await aiosqlite.connect(
            path, timeout=_BUSY_S, isolation_level="IMMEDIATE", cached_statements=2 * _ROWS_PER_STATEMENT
        )
    except sqlite3.Error as error:
        raise _cannot_open(path, error) from None


async def _fetch(
    connection: aiosqlite.Connection, query: str, values: Iterable[Any] = ()
) -> Sequence[sqlite3.Row]:
    return list(await connection.execute_fetchall(query, values))


def _characters(instance: Instance) -> int:
    outputs = sum(len(subtask.output) for subtask in instance.subtasks.values())
    return 4096 + len(instance.prompt) + len(instance.final_result) + outputs


def _page(rows: Sequence[sqlite3.Row], limit: int, state: State) -> Page:
    sizes = accumulate(len(row[2]) for row in rows)
    fitting = 1 + sum(size <= PAGE_BYTES for size in islice(sizes, 1, None))
    shown = rows[:fitting]
    return Page(
        data=b"".join([row[2] for row in shown]),
        places=[row[1] for row in shown],
        at_end=len(shown) == len(rows) < limit,
        state=state,
    )


def _cannot_open(path: Path, error: sqlite3.Error) -> StorageError:
    mend = "set ORCHESTRATOR_DATABASE to another path"
    if "locked" in str(error):
        mend = "another program holds it: close that program, or set ORCHESTRATOR_DATABASE to another path"
    elif "not a database" in str(error):
        mend = "it is some other file: set ORCHESTRATOR_DATABASE to another path"
    elif "readonly" in str(error) or "unable to open" in str(error):
        mend = "set ORCHESTRATOR_DATABASE to a path that this user may write"
    return StorageError(f"database {path} cannot be opened ({error}): {mend}")
