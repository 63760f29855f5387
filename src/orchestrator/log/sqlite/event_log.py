"""The event log on SQLite.

One connection writes, in `writer.py`; readers have one of their own that can only query. No statement's
cursor outlives a call, so the WAL can always be checkpointed.
"""

import asyncio
import errno
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeVar

import aiosqlite

from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.instance import TERMINAL, State
from orchestrator.errors import InstanceNotFoundError, StorageError
from orchestrator.log.base import (
    PAGE_BYTES,
    PAGE_EVENTS,
    Append,
    CommitNotifier,
    Created,
    Creation,
    Deletion,
    Duplicate,
    GlobalPage,
    Head,
    ListPage,
    Page,
    Query,
    Row,
    no_catalogue,
)
from orchestrator.log.sqlite.connection import Statement, connect, connect_frozen, connect_reader, fetch
from orchestrator.log.sqlite.lock import DatabaseLock
from orchestrator.log.sqlite.schema import is_up_to_date, migrate
from orchestrator.log.sqlite.tables import find_duplicate
from orchestrator.log.sqlite.writer import CommitCallback, SqliteWriter
from orchestrator.log.storage_faults import is_full, mend

T = TypeVar("T")

_SCANNED_POSITIONS: Final = 1024
"""How many positions one read looks at for what is of a tenant or has labels."""
_SCANNED_INSTANCES: Final = 2048
"""How many instances one read of a list looks at, where not all of those are asked for."""
_TERMINAL: Final = ",".join(str(state) for state in sorted(TERMINAL))
_MAX_HEADS: Final = 16_384
_NO_POSITION: Final = 2**63 - 1
_Place = tuple[int, int, int, str | None, tuple[tuple[str, str], ...]]
"""How often something was committed before, after which position, how much, and of which instances."""

_GLOBAL_PAGE_SQL: Final = f"""
    WITH scanned AS MATERIALIZED (
        SELECT position, instance, NULL AS tenant, NULL AS id, NULL AS labels FROM event WHERE position > ?1
        UNION ALL
        SELECT position, instance, tenant, id, labels FROM deletion WHERE position > ?1
        ORDER BY position LIMIT ?2
    ), matching AS MATERIALIZED (
        SELECT position, instance, tenant, id FROM scanned WHERE {{condition}} ORDER BY position LIMIT ?3 + 1
    )
    SELECT scan.count, scan.end, scan.matching, page.position, page.instance, page.tenant, page.id, event.data
    FROM (
        SELECT count(*) AS count, max(position) AS end, (SELECT count(*) FROM matching) AS matching
        FROM scanned
    ) AS scan
    LEFT JOIN (
        SELECT matching.*, sum(length(data)) OVER (ORDER BY matching.position) - length(data) AS before
        FROM matching LEFT JOIN event ON event.position = matching.position
        LIMIT ?3
    ) AS page ON coalesce(before, 0) < {PAGE_BYTES}
    LEFT JOIN event ON event.position = page.position
    ORDER BY page.position
"""  # noqa: S608
"""What happened after a position: of a bounded number of positions those that match, as far as a page holds.

It is one statement, so that it reads one state of the file: were deletions and events read apart, what is
committed between would fall between.
"""


class SqliteEventLog:
    """An EventLog in one SQLite file, for one server at a time. Make it with `open`."""

    def __init__(self, path: Path, lock: DatabaseLock, on_commit: CommitCallback) -> None:
        self.notifier = CommitNotifier()
        self._path = path
        self._lock = lock
        self._writer = SqliteWriter(path, self._on_durable, on_commit)
        self._heads: OrderedDict[InstanceKey, Head] = OrderedDict()
        """Of the instances written last: this process is the only one that writes the file."""
        self._reader: aiosqlite.Connection
        self._scanner: aiosqlite.Connection
        """For reads of many instances, so that none of the others waits for one. None of them takes long, so
        that they do not wait for each other either."""
        self._readings: dict[_Place, asyncio.Task[GlobalPage]] = {}
        """Reads of all instances that are under way."""

    @classmethod
    async def open(
        cls,
        path: Path,
        setting: str = "ORCHESTRATOR_DATABASE",
        *,
        on_commit: CommitCallback = lambda _entries, _duration_s: None,
    ) -> Self:
        """Open or make the log at a path; raise StorageError that says what is in the way.

        `setting` is what a person changes to have it elsewhere. `on_commit` is called after each commit of
        appends and creations with how many they were, and how many seconds it took.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            path = path.resolve()  # one lock, by whatever name the file is reached
            lock = DatabaseLock(path, setting)
        except OSError as error:
            raise _cannot_open(path, error, setting) from None
        log = cls(path, lock, on_commit)
        try:
            await log._connect(setting)
        except BaseException as error:
            lock.release()
            if isinstance(error, sqlite3.Error):
                raise _cannot_open(path, error, setting) from None
            raise
        return log

    async def _connect(self, setting: str) -> None:
        try:
            writer = await connect(self._path)
        except sqlite3.Error as error:
            if not (is_full(error, self._path) and _is_complete(self._path)):
                raise
            await self._connect_frozen(error)
            return
        try:
            await migrate(writer, self._path, setting)
            self._reader = await connect_reader(self._path)
            self._scanner = await connect_reader(self._path)
            await self._writer.start(writer)
        except BaseException:
            await writer.close()
            raise

    async def _connect_frozen(self, error: sqlite3.Error) -> None:
        """Serve reads where the disk has no room for the files that SQLite needs beside the database."""
        reader = await connect_frozen(self._path)
        try:
            if not await is_up_to_date(reader):
                raise error
            self._reader = reader
            self._scanner = await connect_frozen(self._path)
            await self._writer.start(await connect_frozen(self._path), error, self._thaw)
        except BaseException:
            await reader.close()
            raise

    async def _thaw(self) -> None:
        """Read what is written from now on."""
        frozen = self._reader, self._scanner
        self._reader, self._scanner = await connect_reader(self._path), await connect_reader(self._path)
        for connection in frozen:
            await connection.close()

    def create(self, batch: Sequence[Creation]) -> "asyncio.Future[Sequence[Created | Duplicate]]":
        """Queue creations; see EventLog."""
        return self._writer.create(batch)

    def append(self, append: Append) -> "asyncio.Future[None]":
        """Queue events; see EventLog."""
        return self._writer.append(append)

    async def check_creation(self, creation: Creation) -> Duplicate | None:
        """Look for what has its id or request id; see EventLog."""
        return await find_duplicate(self._reader, creation)

    async def acquire_lease(self, ref: InstanceRef) -> int:
        """Begin a new epoch; see EventLog."""
        return await self._writer.acquire_lease(ref)

    async def delete(self, ref: InstanceRef) -> None:
        """Remove a finished instance; see EventLog."""
        await self._writer.delete(ref)

    async def store_catalogue(self, digest: str, data: bytes) -> None:
        """Keep a catalogue, without writing where it is kept already; see EventLog."""
        if not await self._find_catalogue(digest):
            await self._writer.store_catalogue(digest, data)

    async def catalogue(self, digest: str) -> bytes:
        """Give a catalogue; see EventLog."""
        for (data,) in await self._find_catalogue(digest):
            return bytes(data)
        raise no_catalogue(digest)

    async def _find_catalogue(self, digest: str) -> Sequence[sqlite3.Row]:
        return await fetch(self._reader, "SELECT data FROM catalogue WHERE digest = ?", (digest,))

    def answer(self, durable: "asyncio.Future[T]") -> "asyncio.Future[T]":
        """Give what a client waits for; see EventLog."""
        return self._writer.answer(durable)

    @property
    def obstacle(self) -> str:
        """Why the storage takes no writes; see EventLog."""
        return self._writer.obstacle

    def watch_storage(self, on_change: Callable[[str], None]) -> None:
        """Notify a listener; see EventLog."""
        self._writer.watch_storage(on_change)

    async def watch(self) -> None:
        """Wait for as long as the log can be written; raise what ended that."""
        await self._writer.watch()

    async def aclose(self) -> None:
        """Write what is queued, then close all connections and release the lock."""
        try:
            await self._reader.close()
            await self._scanner.close()
            await self._writer.aclose()
        finally:
            self._lock.release()

    def _on_durable(self, heads: Mapping[InstanceRef, Head | None]) -> None:
        for ref, head in heads.items():
            if head:
                self._heads[ref.key] = head
                self._heads.move_to_end(ref.key)
            else:
                self._heads.pop(ref.key, None)
        while len(self._heads) > _MAX_HEADS:
            self._heads.popitem(last=False)
        self.notifier.notify(heads)

    def _forget_heads_before(self, position: int) -> None:
        """Look heads up again once a reader has seen what the writer does not know to be durable yet."""
        if position > self._writer.position:
            self._heads.clear()

    async def head(self, key: InstanceKey) -> Head:
        """Find the current incarnation of a key; see EventLog."""
        if head := self._heads.get(key):
            return head
        rows = await fetch(
            self._reader, "SELECT key, state, last_sequence FROM instance WHERE tenant = ? AND id = ?", key
        )
        if not rows:
            raise InstanceNotFoundError(key.id)
        incarnation, state, last_sequence = rows[0]
        return Head(InstanceRef(key, incarnation), state, last_sequence)

    async def find(self, instance_id: str) -> "Sequence[Head]":
        """Ask for each tenant's instance of that id; see EventLog."""
        rows = await fetch(
            self._scanner,
            # From each tenant to the next by the index: SQLite would look at every instance otherwise.
            """
            WITH RECURSIVE owner (tenant) AS (
                SELECT min(tenant) FROM instance
                UNION ALL
                SELECT (SELECT min(instance.tenant) FROM instance WHERE instance.tenant > owner.tenant)
                FROM owner WHERE owner.tenant IS NOT NULL
            )
            SELECT instance.tenant, key, state, last_sequence
            FROM owner CROSS JOIN instance ON instance.tenant = owner.tenant AND instance.id = ?
            ORDER BY instance.tenant
            """,
            (instance_id,),
        )
        return [
            Head(InstanceRef(InstanceKey(tenant, instance_id), key), state, last_sequence)
            for tenant, key, state, last_sequence in rows
        ]

    async def read(self, ref: InstanceRef, after: int, limit: int = PAGE_EVENTS) -> Page:
        """Read a page of one instance; see EventLog."""
        rows = await fetch(
            self._reader,
            f"""
            SELECT instance.state, page.total, page.position, page.sequence, event.data
            FROM instance
            LEFT JOIN ({_page_sql("instance = ?1 AND sequence > ?2")}) AS page ON true
            LEFT JOIN event ON event.position = page.position
            WHERE instance.key = ?1 ORDER BY page.position
            """,  # noqa: S608
            (ref.incarnation, after, limit),
        )
        if not rows:
            raise InstanceNotFoundError(ref.id)
        if rows[0][1] is None:
            return Page(b"", (), at_end=True, state=rows[0][0])
        self._forget_heads_before(rows[-1][2])
        return _page(rows, limit)

    async def read_all(
        self,
        after: int,
        limit: int = PAGE_EVENTS,
        *,
        tenant: str | None = None,
        labels: Sequence[tuple[str, str]] = (),
    ) -> GlobalPage:
        """Read a page of all instances; see EventLog.

        Followers that stand at one place share one read: a commit wakes all of them.
        """
        place = (self.notifier.commits, after, limit, tenant, tuple(labels))
        reading = self._readings.get(place)
        if reading is None:
            reading = asyncio.create_task(self._read_all(after, limit, tenant, labels))
            self._readings[place] = reading

            def forget(done: asyncio.Task[GlobalPage]) -> None:
                del self._readings[place]
                if not done.cancelled():
                    done.exception()  # the readers may all have gone

            reading.add_done_callback(forget)
        return await asyncio.shield(reading)

    async def _read_all(
        self, after: int, limit: int, tenant: str | None, labels: Sequence[tuple[str, str]]
    ) -> GlobalPage:
        is_filtered = tenant is not None or bool(labels)
        scanned = _SCANNED_POSITIONS if is_filtered else limit
        conditions, values = _filters(tenant, labels, first_place=4)
        rows = await fetch(
            self._scanner,
            _GLOBAL_PAGE_SQL.format(condition=" AND ".join(conditions)),
            (after, scanned, limit, *values),
        )
        page = _global_page(rows, after, scanned)
        self._forget_heads_before(page.cursor)
        return page

    async def last_position(self) -> int:
        """Give the last position; see EventLog."""
        ((last,),) = await fetch(
            self._reader,
            "SELECT max(position, coalesce((SELECT max(position) FROM event), 0),"
            " coalesce((SELECT max(position) FROM deletion), 0)) FROM given",
        )
        return int(last)

    async def list(self, query: Query) -> ListPage:
        """List instances; see EventLog."""
        (window, places), size = _window(query)
        conditions, values = ["true"], list[object]()
        for name, value in query.labels[1:]:
            conditions.append("EXISTS (SELECT 1 FROM label WHERE instance = key AND name = ? AND value = ?)")
            values += (name, value)
        if query.tenant is not None:
            conditions.append("tenant = ?")
            values.append(query.tenant)
        if query.states:
            conditions.append(f"state IN ({','.join('?' * len(query.states))})")
            values += query.states
        if query.id_prefix:
            conditions.append("id >= ? AND id < ?")
            values += (query.id_prefix, query.id_prefix[:-1] + chr(ord(query.id_prefix[-1]) + 1))
        rows = await fetch(
            self._scanner,
            f"""
            WITH looked_at AS MATERIALIZED ({window} ORDER BY key DESC LIMIT ?)
            SELECT scanned, lowest, found.key, tenant, id, state, last_sequence, coalesce(view, x'')
            FROM (SELECT count(*) AS scanned, min(key) AS lowest FROM looked_at)
            LEFT JOIN (
                SELECT key, tenant, id, state, last_sequence FROM looked_at CROSS JOIN instance USING (key)
                WHERE {" AND ".join(conditions)} ORDER BY key DESC LIMIT ?
            ) AS found ON true
            LEFT JOIN summary ON summary.instance = found.key AND summary.sequence = found.last_sequence
            ORDER BY found.key DESC
            """,  # noqa: S608
            (*places, size, *values, query.limit + 1),
        )
        scanned, lowest = rows[0][:2]
        found = [
            Row(Head(InstanceRef(InstanceKey(tenant, instance_id), key), state, last_sequence), view)
            for _, _, key, tenant, instance_id, state, last_sequence, view in rows[: query.limit]
            if key is not None
        ]
        if len(rows) > query.limit:
            return ListPage(found, found[-1].head.ref.incarnation)
        return ListPage(found, lowest if scanned == size else 0)

    async def unfinished(self) -> "Sequence[Head]":
        """Return all instances in no terminal state; see EventLog."""
        rows = await fetch(
            self._scanner,
            "SELECT key, tenant, id, state, last_sequence FROM instance"  # noqa: S608
            f" WHERE state NOT IN ({_TERMINAL}) ORDER BY key",
        )
        return [
            Head(InstanceRef(InstanceKey(tenant, instance_id), key), state, last_sequence)
            for key, tenant, instance_id, state, last_sequence in rows
        ]

    async def count_by_state(self) -> Mapping[State, int]:
        """Count instances by state; see EventLog. It is read from an index alone."""
        rows = await fetch(self._scanner, "SELECT state, count(*) FROM instance GROUP BY state")
        return dict(map(tuple, rows))

    def size_bytes(self) -> int:
        """Return the size of the file and of its write-ahead log; see EventLog."""
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    @property
    def is_writable(self) -> bool:
        """Whether the storage takes writes; see EventLog."""
        return self._writer.is_writable

    async def finished_before(self, time_s: float, limit: int) -> "Sequence[InstanceRef]":
        """Instances that finished before a time; see EventLog."""
        rows = await fetch(
            self._scanner,
            "SELECT key, tenant, id FROM instance WHERE end_time_s > 0 AND end_time_s < ?"
            " ORDER BY end_time_s LIMIT ?",
            (time_s, limit),
        )
        return [InstanceRef(InstanceKey(tenant, instance_id), key) for key, tenant, instance_id in rows]


def _window(query: Query) -> tuple[Statement, int]:
    """Return what finds the keys of the instances to look at, and how many those are at most.

    They are no more than is asked for where all of them match.
    """
    before = query.before or _NO_POSITION
    others = query.tenant is not None or bool(query.id_prefix)
    if query.labels:
        others = others or bool(query.states) or len(query.labels) > 1
    size = _SCANNED_INSTANCES if others else query.limit + 1
    if query.labels:
        sql = "SELECT instance AS key FROM label WHERE name = ? AND value = ? AND instance < ?"
        return (sql, (*query.labels[0], before)), size
    if query.states:
        states = set(query.states)
        # Each by itself: of several together, SQLite would sort all.
        of_one = (
            "SELECT key FROM (SELECT key FROM instance WHERE state = ? AND key < ? ORDER BY key DESC LIMIT ?)"
        )
        values = chain.from_iterable((state, before, size) for state in states)
        return (" UNION ALL ".join([of_one] * len(states)), tuple(values)), size
    return ("SELECT key FROM instance WHERE key < ?", (before,)), size


class _Found(NamedTuple):
    """What happened at a position."""

    position: int
    incarnation: int
    tenant: str | None
    """None: it is an event, and there is no id."""
    id: str
    data: bytes


def _filters(
    tenant: str | None, labels: Sequence[tuple[str, str]], first_place: int
) -> tuple[Sequence[str], Sequence[str]]:
    """Write the SQL for who is wanted of those scanned, and give the values from a numbered place on."""
    conditions, values = ["true"], list[str]()
    if tenant is not None:
        values.append(tenant)
        conditions.append(
            f"?{first_place} = coalesce(scanned.tenant,"  # noqa: S608
            " (SELECT tenant FROM instance WHERE key = scanned.instance))"
        )
    for label in labels:
        place = first_place + len(values)
        values += label
        conditions.append(
            f"CASE WHEN scanned.labels IS NULL"  # noqa: S608
            f" THEN EXISTS (SELECT 1 FROM label WHERE instance = scanned.instance"
            f" AND name = ?{place} AND value = ?{place + 1})"
            f" ELSE EXISTS (SELECT 1 FROM json_each(scanned.labels)"
            f" WHERE key = ?{place} AND atom = ?{place + 1}) END"
        )
    return conditions, values


def _global_page(rows: Sequence[sqlite3.Row], after: int, scannable: int) -> GlobalPage:
    """Build a page of what was found; it ends before an event that follows a deletion."""
    scanned, end, matching = rows[0][:3]
    found = [_Found(*row[3:]) for row in rows if row[3] is not None]
    events = list(takewhile(lambda row: row.tenant is None, found))
    deletions = []
    for row in found[len(events) :]:
        if row.tenant is None:
            break
        deletions.append(
            Deletion(InstanceRef(InstanceKey(row.tenant, row.id), row.incarnation), row.position)
        )
    is_whole = len(events) + len(deletions) == matching
    page = Page(
        data=b"".join([row.data for row in events]),
        ordinals=[row.position for row in events],
        at_end=is_whole and scanned < scannable,
    )
    last = deletions[-1].position if deletions else after
    if is_whole:
        last = end or after
    elif not deletions:
        last = events[-1].position
    return GlobalPage(page, deletions, last)


def _page(rows: Sequence[sqlite3.Row], limit: int) -> Page:
    state, total = rows[0][:2]
    return Page(
        data=b"".join([row[4] for row in rows]),
        ordinals=[row[3] for row in rows],
        at_end=len(rows) == total < limit,
        state=state,
    )


def _page_sql(condition: str, limit: str = "?3") -> str:
    """Write the SQL for the rows of a page: no more than its limit and not much more than its bytes.

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


def _is_complete(path: Path) -> bool:
    """Return whether all that was written is in the database itself: a log that was closed has no WAL."""
    wal = Path(f"{path}-wal")
    return path.exists() and not (wal.exists() and wal.stat().st_size)


def _cannot_open(path: Path, error: sqlite3.Error | OSError, setting: str) -> StorageError:
    said = error.strerror if isinstance(error, OSError) else error
    return StorageError(
        f"database {path} cannot be opened ({said}): {mend(error, path)}, "
        f"or set {setting} to a path that this user may write"
    )
