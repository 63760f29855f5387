"""What a transaction writes into the SQLite log's tables.

Rows go in as few statements as possible: SQLite releases the interpreter's lock for each statement it steps,
and a busy event loop is slow to give it back.
"""

import asyncio
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple

import aiosqlite

from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.instance import TERMINAL, State
from orchestrator.core.lifecycle import forbidden
from orchestrator.core.summary import Summary, summarize
from orchestrator.errors import AlreadyExistsError, InstanceNotFoundError, StorageError
from orchestrator.log.base import (
    Append,
    Created,
    Creation,
    Duplicate,
    FencedError,
    Head,
    SequenceConflictError,
    encode_row,
    gap,
)
from orchestrator.log.conflict import check_duplicate
from orchestrator.log.sqlite.connection import CACHED_STATEMENTS, Connection, Statement, fetch
from orchestrator.v1.event_pb2 import Event

ROWS_PER_STATEMENT: Final = 256


@dataclass(slots=True, eq=False)
class Pending:
    """What is on its way into the log, and who waits for it."""

    durable: "asyncio.Future[Any]"
    rejection: Exception | None = field(default=None, init=False)
    """Why it is left out of its group; raised only once the group is durable, because the reason may be in
    the same group."""

    def reset(self) -> None:
        """Forget what came of it in a transaction that was taken back."""
        self.rejection = None

    def reject(self, error: Exception) -> None:
        """Fail those who wait for it."""
        if not self.durable.done():
            self.durable.set_exception(error)
            self.durable.exception()  # it may have been queued and not awaited


@dataclass(slots=True, eq=False)
class PendingCreations(Pending):
    """Creations that become durable all at once or not at all."""

    creations: Sequence[Creation]
    outcomes: list[Created | Duplicate] = field(default_factory=list, init=False)

    def reset(self) -> None:
        """Forget what came of them; see Pending."""
        self.rejection = None
        self.outcomes.clear()


@dataclass(slots=True, eq=False)
class PendingAppend(Pending):
    """Events for an instance that is there."""

    append: Append


class _Row(NamedTuple):
    """What the table `instance` holds of an instance that may go on."""

    state: State
    last_sequence: int
    epoch: int


class CommitGroup:
    """What one transaction writes."""

    def __init__(self, position: int, key: int) -> None:
        self.position = position
        """Of the last event, when this is durable."""
        self.key = key
        """Of the newest instance, when this is durable."""
        self.rows: dict[int, _Row] = {}
        """By the instance's key: as it is after this."""
        self._changes: dict[int, tuple[object, ...]] = {}
        """Rows whose state changes: the key, the last sequence before and after this, and what is new."""
        self._sequences: dict[int, tuple[object, ...]] = {}
        """Rows that go on in the same state."""
        self._refs: dict[int, InstanceRef] = {}
        self._labels: list[object] = []
        self._events: list[object] = []
        self._views: list[object] = []
        self._failed: set[asyncio.Future[Any]] = set()

    def add_creation(self, ref: InstanceRef, creation: Creation) -> None:
        """Add the first events and the labels of an instance whose row is there."""
        self.key = max(self.key, ref.incarnation)
        for label in creation.instance.labels.items():
            self._labels += (ref.incarnation, *label)
        self._add(ref, creation.events, summarize(creation.instance), epoch=0)

    def add_append(self, pending: PendingAppend) -> None:
        """Add events, or mark them as refused."""
        append = pending.append
        ref = append.ref
        row = self.rows.get(ref.incarnation)
        if row is None:
            pending.rejection = InstanceNotFoundError(ref.id)
        elif append.epoch is not None and append.epoch < row.epoch:
            pending.rejection = FencedError()
        elif append.expected_sequence != row.last_sequence or self._has_failed_before(append):
            pending.rejection = SequenceConflictError(row.last_sequence)
        elif not append.is_dense:
            pending.rejection = gap(ref.id)
        if pending.rejection:
            self._failed.add(pending.durable)
            return
        assert row  # noqa: S101  or it would have been refused
        self._add(ref, append.events, append.summary, row.epoch)
        key, summary, last = ref.incarnation, append.summary, append.events[-1].sequence
        before = self._changes.get(key) or self._sequences.get(key) or (key, append.expected_sequence)
        if summary.state != row.state or key in self._changes:
            self._changes[key] = (*before[:2], last, summary.state, summary.end_time_s)
            self._sequences.pop(key, None)
        else:
            self._sequences[key] = (*before[:2], last)

    def _has_failed_before(self, append: Append) -> bool:
        return append.previous in self._failed or append.has_failed_predecessor

    def _add(self, ref: InstanceRef, events: Sequence[Event], summary: Summary, epoch: int) -> None:
        key = ref.incarnation
        for event in events:
            self.position += 1
            self._events += (self.position, key, event.sequence, encode_row(event))
        self.rows[key] = _Row(summary.state, events[-1].sequence, epoch)
        if summary.view:
            self._views += (key, events[-1].sequence, summary.view)
        self._refs[key] = ref

    @property
    def heads(self) -> Mapping[InstanceRef, Head]:
        """Where the instances stand that this is about, after it."""
        rows = ((ref, self.rows[key]) for key, ref in self._refs.items())
        return {ref: Head(ref, row.state, row.last_sequence) for ref, row in rows}

    def statements(self) -> Sequence[Statement]:
        """Return what writes it, but for the instances' own rows."""
        return [
            *_insertions("INSERT INTO label (instance, name, value) VALUES", "(?,?,?)", self._labels),
            *_insertions(
                "INSERT INTO event (position, instance, sequence, data) VALUES", "(?,?,?,?)", self._events
            ),
            *self._updates(),
            *_insertions(
                "INSERT INTO summary (instance, sequence, view) VALUES",
                "(?,?,?)",
                self._views,
                "ON CONFLICT DO UPDATE SET sequence = excluded.sequence, view = excluded.view",
            ),
        ]

    def _updates(self) -> Sequence[Statement]:
        """Update rows; those whose state stays the same by themselves, for that touches no index.

        A row that does not have the last sequence that it has to have would lose it, which fails the group.
        """
        last = (
            "UPDATE instance"
            " SET last_sequence = CASE last_sequence WHEN change.value ->> 1 THEN change.value ->> 2 END"
        )
        state = ", state = change.value ->> 3, end_time_s = change.value ->> 4"
        rest = " FROM json_each(?) AS change WHERE instance.key = change.value ->> 0"
        both = ((last + rest, self._sequences), (last + state + rest, self._changes))
        return [(query, (json.dumps(list(rows.values())),)) for query, rows in both if rows]


class SqliteTables:
    """The tables, by the connection that writes them, and the numbers given so far."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.position = 0
        """Of the last event or deletion that is known to be durable."""
        self.key = 0
        """Of the newest instance that is known to be durable."""
        self._rows: dict[int, _Row] = {}
        """Of instances that may go on, as they are known to be durable."""

    async def load_counters(self) -> None:
        """Find out which numbers have been given."""
        self.position = await self._highest("position", "event", "deletion")
        self.key = await self._highest("key", "instance")

    async def has_new_rows(self) -> bool:
        """Return whether there is anything after the last position that is known to be durable."""
        return await self._highest("position", "event", "deletion") > self.position

    async def checkpoint(self) -> None:
        """Copy the WAL into the database: what was read in it after a crash may not be on the disk yet."""
        await fetch(self.connection, "PRAGMA wal_checkpoint")

    async def overwrite_failed_commit(self) -> None:
        """Commit what changes nothing, in the place in the WAL of a transaction whose commit failed.

        Setting a version writes the first page whatever the value is. Frames of the WAL are chained by their
        checksums, so nothing that still lies behind this one is ever taken for a part of the log.
        """
        ((version,),) = await fetch(self.connection, "PRAGMA user_version")
        await self.connection.write([("BEGIN IMMEDIATE", ()), (f"PRAGMA user_version = {version}", ())])

    async def prepare(self, pendings: Sequence[Pending]) -> CommitGroup:
        """Begin a transaction for all that is pending, but for what it marks as refused."""
        group = CommitGroup(self.position, self.key)
        if creations := [pending for pending in pendings if isinstance(pending, PendingCreations)]:
            await self._create(creations, group)
        appends = [pending for pending in pendings if isinstance(pending, PendingAppend)]
        await self._find_rows(appends, group)
        for pending in appends:
            group.add_append(pending)
        return group

    async def commit(self, group: CommitGroup) -> None:
        """Write the rest of a group, and commit it."""
        await self.connection.write(group.statements())

    def publish(self, group: CommitGroup) -> None:
        """Take a group into account that is durable."""
        self.position, self.key = group.position, group.key
        for key, row in group.rows.items():
            if row.state in TERMINAL:
                self._rows.pop(key, None)
            else:
                self._rows[key] = row

    async def roll_back(self) -> None:
        """Roll back the transaction, and drop the cached instances: the file contradicts them."""
        await self.connection.rollback()
        self._rows.clear()

    async def _create(self, pendings: Sequence[PendingCreations], group: CommitGroup) -> None:
        """Insert the rows of new instances, but for those it marks as refused."""
        numbered = list(enumerate(chain.from_iterable(each.creations for each in pendings), self.key + 1))
        values: list[object] = []
        for key, creation in numbered:
            instance = creation.instance
            values += (
                key,
                *creation.key,
                instance.state,
                instance.last_sequence,
                instance.request_id or None,
                instance.request_digest.hex(),
                instance.end_time_s,
            )
        inserted: set[int] = set()
        for query, chunk in _insertions(
            "INSERT INTO instance"
            " (key, tenant, id, state, last_sequence, request_id, request_digest, end_time_s) VALUES",
            "(?,?,?,?,?,?,?,?)",
            values,
            "ON CONFLICT DO NOTHING RETURNING key",
        ):
            inserted.update(row[0] for row in await fetch(self.connection, query, chunk))
        keys = iter(key for key, _ in numbered)
        for pending in pendings:
            for creation in pending.creations:
                key = next(keys)
                if key in inserted:
                    pending.outcomes.append(Created(InstanceRef(creation.key, key)))
                    continue
                try:
                    duplicate = await find_duplicate(self.connection, creation)
                except AlreadyExistsError as error:
                    pending.rejection = pending.rejection or error
                else:
                    unknown = StorageError(f"instance {creation.key.id!r} could not be recorded")
                    pending.rejection = pending.rejection or (None if duplicate else unknown)
                    if duplicate:
                        pending.outcomes.append(duplicate)
            if not pending.rejection:
                for creation, outcome in zip(pending.creations, pending.outcomes, strict=True):
                    if isinstance(outcome, Created):
                        group.add_creation(outcome.ref, creation)
                    if len(pending.creations) > 1:
                        await asyncio.sleep(0)  # a hundred long prompts take a while to encode

    async def _find_rows(self, pendings: Sequence[PendingAppend], group: CommitGroup) -> None:
        """Bring the rows of all instances that are appended to."""
        unknown: set[int] = set()
        for pending in pendings:
            key = pending.append.ref.incarnation
            if key in group.rows:
                continue
            if row := self._rows.get(key):
                group.rows[key] = row
            else:
                unknown.add(key)
        if unknown:
            query = (
                "SELECT key, state, last_sequence, epoch FROM instance"
                " WHERE key IN (SELECT value FROM json_each(?))"
            )
            for key, *found in await fetch(self.connection, query, (json.dumps(list(unknown)),)):
                group.rows[key] = _Row(*found)

    async def acquire_lease(self, ref: InstanceRef) -> int:
        """Commit a new epoch; raise InstanceNotFoundError."""
        self._rows.pop(ref.incarnation, None)
        rows = await fetch(
            self.connection,
            "UPDATE instance SET epoch = epoch + 1 WHERE key = ? RETURNING epoch",
            (ref.incarnation,),
        )
        if not rows:
            await self.connection.rollback()
            raise InstanceNotFoundError(ref.id)
        await self.connection.commit()
        epoch: int = rows[0][0]
        return epoch

    async def store_catalogue(self, digest: str, data: bytes) -> None:
        """Commit a catalogue, where it is not there yet."""
        await self.connection.write(
            [("INSERT INTO catalogue (digest, data) VALUES (?, ?) ON CONFLICT DO NOTHING", (digest, data))]
        )

    async def remove(self, ref: InstanceRef) -> None:
        """Commit that a finished instance is gone; raise InstanceNotFoundError, StateForbidsError."""
        key = ref.incarnation
        rows = await fetch(
            self.connection,
            "SELECT state, (SELECT json_group_object(name, value) FROM label WHERE instance = ?1)"
            " FROM instance WHERE key = ?1",
            (key,),
        )
        if not rows:
            raise InstanceNotFoundError(ref.id)
        state, labels = rows[0]
        if state not in TERMINAL:
            raise forbidden(ref.id, state, "delete")
        await self.connection.write(
            [
                ("DELETE FROM event WHERE instance = ?", (key,)),
                ("DELETE FROM label WHERE instance = ?", (key,)),
                ("DELETE FROM summary WHERE instance = ?", (key,)),
                ("DELETE FROM instance WHERE key = ?", (key,)),
                (
                    "INSERT INTO deletion (position, instance, tenant, id, labels) VALUES (?, ?, ?, ?, ?)",
                    (self.position + 1, key, *ref.key, labels),
                ),
                ("UPDATE given SET position = ?, key = ?", (self.position + 1, self.key)),
            ]
        )
        self.position += 1
        self._rows.pop(key, None)

    async def shrink(self, pages: int) -> bool:
        """Give up to so many free pages at the file's end back; return whether there may be more.

        None are where the file was made to keep them, as files of before version 3 were.
        """
        try:
            before = await self._free_pages()
            if before:
                # Not `execute`: that makes one step of the statement, which is one page.
                await self.connection.executescript(f"PRAGMA incremental_vacuum({pages})")
            return 0 < await self._free_pages() < before
        except sqlite3.Error:
            return False  # the next deletion tries again

    async def _free_pages(self) -> int:
        ((pages,),) = await fetch(self.connection, "PRAGMA freelist_count")
        return int(pages)

    async def _highest(self, number: str, *tables: str) -> int:
        """Return the highest position or key ever given, also to what has been deleted since."""
        highest = ", ".join(f"coalesce((SELECT max({number}) FROM {table}), 0)" for table in tables)  # noqa: S608
        ((found,),) = await fetch(self.connection, f"SELECT max(given.{number}, {highest}) FROM given")  # noqa: S608
        return int(found)


def _insertions(statement: str, row: str, values: Sequence[object], ending: str = "") -> Sequence[Statement]:
    """Insert rows, whose values stand one after the other, by as few statements as possible."""
    width = row.count("?")
    size = width * ROWS_PER_STATEMENT
    chunks = [values[start : start + size] for start in range(0, len(values), size)]
    return [(_insertion(statement, row, len(chunk) // width, ending), chunk) for chunk in chunks]


@lru_cache(CACHED_STATEMENTS)
def _insertion(statement: str, row: str, count: int, ending: str) -> str:
    return f"{statement} {','.join([row] * count)} {ending}"


async def find_duplicate(connection: aiosqlite.Connection, wanted: Creation) -> Duplicate | None:
    """Find what has a new instance's key or request id; raise AlreadyExistsError as `create` would."""
    tenant, instance_id = wanted.key
    rows = await fetch(
        connection,
        "SELECT key, id, coalesce(request_id, ''), request_digest FROM instance"
        " WHERE tenant = ?1 AND (id = ?2 OR request_id = nullif(?3, ''))"
        " ORDER BY request_id IS NOT nullif(?3, '') LIMIT 1",
        (tenant, instance_id, wanted.instance.request_id),
    )
    if not rows:
        return None
    key, taken_id, request_id, digest = rows[0]
    ref = InstanceRef(InstanceKey(tenant, taken_id), key)
    return check_duplicate(wanted.instance, ref, request_id, bytes.fromhex(digest))
