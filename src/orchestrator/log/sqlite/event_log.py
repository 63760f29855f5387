"""The event log on SQLite.

One connection writes, in `writer.py`; readers have one of their own that can only query. No statement's
cursor outlives a call, so the WAL can always be checkpointed.
"""

import asyncio
import errno
import os
import sqlite3
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self

import aiosqlite

from orchestrator.core.instance import TERMINAL, Instance, State
from orchestrator.core.state import fold
from orchestrator.errors import InstanceNotFoundError, StorageError
from orchestrator.log.base import PAGE_BYTES, PAGE_EVENTS, Entry, Page, Wakeups
from orchestrator.log.sqlite.connection import connect, fetch
from orchestrator.log.sqlite.lock import DatabaseLock
from orchestrator.log.sqlite.schema import migrate
from orchestrator.log.sqlite.tables import find_conflict
from orchestrator.log.sqlite.writer import SqliteWriter
from orchestrator.log.storage_faults import mend
from orchestrator.v1 import instance_pb2 as pb

_MOST_FINISHED_CHARACTERS: Final = 16 * 1024 * 1024
"""How much text the finished instances may hold whose folded state is kept at hand."""

_LABELLED: Final = "instance IN (SELECT instance FROM label WHERE name = ?{} AND value = ?{})"


class SqliteEventLog:
    """An EventLog in one SQLite file, for one server at a time. Make it with `open`."""

    def __init__(self, path: Path, lock: DatabaseLock) -> None:
        self.wakeups = Wakeups()
        self._path = path
        self._lock = lock
        self._writer = SqliteWriter(path, self._publish, self._forget)
        self._reader: aiosqlite.Connection
        self._unfinished: dict[str, Instance] = {}
        self._finished: dict[str, Instance] = {}
        self._finished_characters = 0
        self._deletions = 0

    @classmethod
    async def open(cls, path: Path, setting: str = "ORCHESTRATOR_DATABASE") -> Self:
        """Open or make the log at a path; raise StorageError that says what is in the way.

        `setting` is what a person changes to have it elsewhere.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            path = path.resolve()  # one lock, by whatever name the file is reached
            lock = DatabaseLock(path, setting)
        except OSError as error:
            raise _cannot_open(path, error, setting) from None
        log = cls(path, lock)
        try:
            await log._connect(setting)
        except BaseException as error:
            lock.release()
            if isinstance(error, sqlite3.Error):
                raise _cannot_open(path, error, setting) from None
            raise
        return log

    async def _connect(self, setting: str) -> None:
        writer = await connect(self._path)
        try:
            await migrate(writer, self._path, setting)
            self._reader = await connect(self._path)
            await self._reader.execute("PRAGMA query_only = ON")
            await self._reader.execute("PRAGMA wal_autocheckpoint = 0")
            await self._writer.start(writer)
        except BaseException:
            await writer.close()
            raise

    def append(self, entry: Entry) -> "asyncio.Future[None]":
        """Queue an entry; see EventLog."""
        return self._writer.append(entry)

    def append_atomic(self, entries: Sequence[Entry]) -> "Sequence[asyncio.Future[None]]":
        """Queue creations that go together; see EventLog."""
        return self._writer.append_atomic(entries)

    async def check_new(self, instance: Instance) -> None:
        """Look for what has its id or request id; see EventLog."""
        if refusal := await find_conflict(self._reader, instance):
            raise refusal

    async def delete(self, instance_id: str) -> None:
        """Remove a finished instance; see EventLog."""
        await self._writer.delete(instance_id)

    def check_writable(self) -> None:
        """Raise UnavailableError while the storage takes no writes; see EventLog."""
        self._writer.check_writable()

    async def watch(self) -> None:
        """Wait for as long as the log can be written; raise what ended that."""
        await self._writer.watch()

    async def aclose(self) -> None:
        """Write what is queued, then close both connections and give up the lock."""
        try:
            await self._reader.close()
            await self._writer.aclose()
        finally:
            self._lock.release()

    def _publish(self, entries: Sequence[Entry]) -> None:
        """These are durable: whoever asks sees them, and whoever waits is woken."""
        for _, instance in entries:
            self._forget_finished(instance.id)
            if instance.state in TERMINAL:
                self._unfinished.pop(instance.id, None)
                self._keep_finished(instance)
            else:
                self._unfinished[instance.id] = instance
        self.wakeups.wake([entry.instance.id for entry in entries])

    def _forget(self, instance_id: str) -> None:
        """It was deleted: whoever asks is told so, and whoever reads is woken to see it."""
        self._deletions += 1
        self._forget_finished(instance_id)
        self.wakeups.wake((instance_id,))

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
        if known := self._known(instance_id):
            return known
        deletions = self._deletions
        instance = Instance()
        at_end = False
        while not at_end:
            page = await self.read(instance_id, instance.last_sequence)
            instance = fold(page.events(), instance)
            at_end = page.at_end
        if known := self._known(instance_id):
            return known  # it may have gone on while it was read
        if instance.state in TERMINAL and deletions == self._deletions:
            self._keep_finished(instance)
        return instance

    def _known(self, instance_id: str) -> Instance | None:
        return self._unfinished.get(instance_id) or self._finished.get(instance_id)

    async def read(self, instance_id: str, after: int, limit: int = PAGE_EVENTS) -> Page:
        """Read a page of one instance; see EventLog."""
        rows = await fetch(
            self._reader,
            f"""
            SELECT instance.state, page.total, page.position, page.sequence, event.data, instance.key
            FROM instance
            LEFT JOIN ({_page_of("instance = (SELECT key FROM instance WHERE id = ?1) AND sequence > ?2")})
                AS page ON true
            LEFT JOIN event ON event.position = page.position
            WHERE instance.id = ?1 ORDER BY page.position
            """,  # noqa: S608
            (instance_id, after, limit),
        )
        if not rows:
            raise InstanceNotFoundError(instance_id)
        if rows[0][1] is None:
            return Page(b"", (), at_end=True, state=rows[0][0], key=rows[0][5])
        return await self._page(rows, limit)

    async def read_all(
        self, after: int, limit: int = PAGE_EVENTS, *, labels: Sequence[tuple[str, str]] = ()
    ) -> Page:
        """Read a page of all instances; see EventLog."""
        conditions = ["position > ?1"]
        conditions += [_LABELLED.format(place, place + 1) for place in range(3, 3 + 2 * len(labels), 2)]
        rows = await fetch(
            self._reader,
            f"""
            SELECT 0, page.total, page.position, page.position, event.data, 0
            FROM ({_page_of(" AND ".join(conditions), limit="?2")}) AS page
            JOIN event ON event.position = page.position ORDER BY page.position
            """,  # noqa: S608
            (after, limit, *chain.from_iterable(labels)),
        )
        if not rows:
            return Page(b"", (), at_end=True, state=pb.STATE_UNSPECIFIED)
        return await self._page(rows, limit)

    async def _page(self, rows: Sequence[sqlite3.Row], limit: int) -> Page:
        # A commit is in the file a moment before the writer hears of it. Nobody is shown an event
        # that `load` does not know yet.
        await self._writer.wait_until_published(rows[-1][2])
        state, total = rows[0][:2]
        return Page(
            data=b"".join([row[4] for row in rows]),
            ordinals=[row[3] for row in rows],
            at_end=len(rows) == total < limit,
            state=state,
            key=rows[0][5],
        )

    async def last_sequence(self, instance_id: str) -> int:
        """Look up an instance's last sequence; see EventLog."""
        rows = await fetch(
            self._reader,
            "SELECT max(sequence) FROM event WHERE instance = (SELECT key FROM instance WHERE id = ?)",
            (instance_id,),
        )
        if rows[0][0] is None:
            raise InstanceNotFoundError(instance_id)
        last: int = rows[0][0]
        return last

    async def last_position(self) -> int:
        """Give the last position; see EventLog."""
        return self._writer.position

    async def find(
        self,
        *,
        states: Sequence[State] = (),
        labels: Sequence[tuple[str, str]] = (),
        id_prefix: str = "",
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
        if id_prefix:
            conditions.append("id >= ? AND id < ?")
            values += (id_prefix, id_prefix[:-1] + chr(ord(id_prefix[-1]) + 1))
        rows = await fetch(
            self._reader,
            f"SELECT key, id FROM instance WHERE {' AND '.join(conditions)} ORDER BY key DESC LIMIT ?",  # noqa: S608
            (*values, limit),
        )
        return [(row[0], row[1]) for row in rows]

    async def unfinished(self) -> Sequence[str]:
        """Ids of all instances in no terminal state; see EventLog."""
        terminal = ",".join(str(state) for state in sorted(TERMINAL))
        rows = await fetch(
            self._reader,
            f"SELECT id FROM instance WHERE state NOT IN ({terminal}) ORDER BY key",  # noqa: S608
        )
        return [row[0] for row in rows]

    async def finished_before(self, time_s: float, limit: int) -> Sequence[str]:
        """Ids of instances that finished before a time; see EventLog."""
        rows = await fetch(
            self._reader,
            "SELECT id FROM instance WHERE end_time_s > 0 AND end_time_s < ? ORDER BY end_time_s LIMIT ?",
            (time_s, limit),
        )
        return [row[0] for row in rows]


def _page_of(condition: str, limit: str = "?3") -> str:
    """SQL for the rows of a page: no more than its limit and not much more than its bytes.

    The sizes are looked at before any data is read; the first row is there whatever its size.
    """
    return f"""
        SELECT position, sequence, total FROM (
            SELECT position, sequence, count(*) OVER () AS total,
                sum(size) OVER (ORDER BY position) - size AS before
            FROM (
                SELECT position, sequence, length(data) AS size FROM event
                WHERE {condition} ORDER BY position LIMIT {limit}
            )
        ) WHERE before < {PAGE_BYTES}
    """  # noqa: S608


def _characters(instance: Instance) -> int:
    texts = sum(len(subtask.output) + len(subtask.instructions) for subtask in instance.subtasks.values())
    whole = len(instance.prompt) + len(instance.summary) + len(instance.final_result)
    return 4096 + whole + texts + instance.config.ByteSize()


def _cannot_open(path: Path, error: sqlite3.Error | OSError, setting: str) -> StorageError:
    said = error.strerror if isinstance(error, OSError) else error
    return StorageError(
        f"database {path} cannot be opened ({said}): {mend(error, path)}, "
        f"or set {setting} to a path that this user may write"
    )
