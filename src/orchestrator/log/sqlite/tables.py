"""What a transaction writes into the SQLite log's tables.

Rows go in as few statements as possible: SQLite releases the interpreter's lock for each statement it steps,
and a busy event loop is slow to give it back.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Final

import aiosqlite

from orchestrator.core.instance import TERMINAL, Instance, State
from orchestrator.core.lifecycle import forbidden
from orchestrator.errors import InstanceNotFoundError, StorageError
from orchestrator.log.base import DuplicateRequest, Entry, framed
from orchestrator.log.conflict import conflict
from orchestrator.log.sqlite.connection import CACHED_STATEMENTS, Connection, Statement, fetch

ROWS_PER_STATEMENT: Final = 256


@dataclass(slots=True)
class Pending:
    """An entry on its way into the log."""

    entry: Entry
    durable: "asyncio.Future[None]"
    newest_key: int
    """The newest instance that was known when it was queued. It cannot be about a newer one."""
    creates: bool
    refusal: Exception | None = None
    """Why the entry is left out of its group; told only once the group is durable, because the reason may
    lie in the same group."""

    def refuse(self, error: Exception) -> None:
        """Tell whoever waits for it."""
        if not self.durable.done():
            self.durable.set_exception(error)
            self.durable.exception()  # whoever queued it without waiting does not want to know


@dataclass(slots=True)
class _Row:
    """What the table `instance` holds of an unfinished instance."""

    key: int
    state: State


class SqliteTables:
    """The tables, by the connection that writes them, and the numbers given so far."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.position = 0
        """Of the last event that is known to be durable."""
        self.key = 0
        """Of the newest instance that is known to be durable."""
        self._rows: dict[str, _Row] = {}

    async def load_counters(self) -> None:
        """Find out which numbers have been given."""
        self.position = await self._highest("position", "event")
        self.key = await self._highest("key", "instance")

    async def has_new_events(self) -> bool:
        """Whether there are events after the last one that is known to be durable."""
        return await self._highest("position", "event") > self.position

    async def write(self, group: list[Pending], *, atomic: bool) -> None:
        """Commit a group, but for what it marks as refused; `atomic`: all of it or nothing."""
        creations = [pending for pending in group if pending.creates]
        labels = await self._create(creations) if creations else ()
        if atomic and (fault := _fault(group)):
            await self.connection.rollback()
            for pending in group:
                self._rows.pop(pending.entry.instance.id, None)
                pending.refusal = fault
            return
        await self._find_rows(group)
        accepted = [pending.entry for pending in group if not pending.refusal]
        await self.connection.write([*labels, *self._event_rows(accepted), *self._changed_states(accepted)])

    async def _create(self, creations: list[Pending]) -> Sequence[Statement]:
        """Insert the instances, but for those it marks as refused; what inserts their labels."""
        rows = []
        for key, pending in enumerate(creations, self.key + 1):
            instance = pending.entry.instance
            digest = instance.request_digest.hex()
            request_id = instance.request_id or None
            rows.append((key, instance.id, instance.state, request_id, digest, instance.end_time_s))
        keys: set[int] = set()
        for query, values in _insertions(
            "INSERT INTO instance (key, id, state, request_id, request_digest, end_time_s) VALUES",
            "(?,?,?,?,?,?)",
            list(chain.from_iterable(rows)),
            "ON CONFLICT DO NOTHING RETURNING key",
        ):
            keys.update(row[0] for row in await fetch(self.connection, query, values))
        labels: list[object] = []
        for row, pending in zip(rows, creations, strict=True):
            instance = pending.entry.instance
            if row[0] in keys:
                self._rows[instance.id] = _Row(row[0], instance.state)
                for label in instance.labels.items():
                    labels += (row[0], *label)
            else:
                unknown = StorageError(f"instance {instance.id!r} could not be recorded")
                pending.refusal = await find_conflict(self.connection, instance) or unknown
        return _insertions("INSERT INTO label (instance, name, value) VALUES", "(?,?,?)", labels)

    async def _find_rows(self, group: list[Pending]) -> None:
        for pending in group:
            instance_id = pending.entry.instance.id
            if pending.creates or pending.refusal:
                continue
            row = self._rows.get(instance_id)
            if row is None:
                query = "SELECT key, state FROM instance WHERE id = ?"
                for found in await fetch(self.connection, query, (instance_id,)):
                    row = self._rows[instance_id] = _Row(*found)
            if row is None or row.key > pending.newest_key:
                pending.refusal = InstanceNotFoundError(instance_id)

    def _event_rows(self, entries: list[Entry]) -> Sequence[Statement]:
        values: list[object] = []
        position = self.position
        for entry in entries:
            key = self._rows[entry.instance.id].key
            for event in entry.events:
                position += 1
                values += (position, key, event.sequence, framed(event))
        return _insertions(
            "INSERT INTO event (position, instance, sequence, data) VALUES", "(?,?,?,?)", values
        )

    def _changed_states(self, entries: list[Entry]) -> Sequence[Statement]:
        changes = {}
        for entry in entries:
            row = self._rows[entry.instance.id]
            if row.key in changes or row.state != entry.instance.state:
                changes[row.key] = (row.key, entry.instance.state, entry.instance.end_time_s)
        query = (
            "UPDATE instance SET state = change.value ->> 1, end_time_s = change.value ->> 2"
            " FROM json_each(?) AS change WHERE instance.key = change.value ->> 0"
        )
        return [(query, (json.dumps(list(changes.values())),))] if changes else []

    def publish(self, entries: Sequence[Entry]) -> None:
        """These are durable."""
        for entry in entries:
            self.position += len(entry.events)
            row = self._rows[entry.instance.id]
            row.state = entry.instance.state
            self.key = max(self.key, row.key)
        for entry in entries:
            if entry.instance.state in TERMINAL:
                self._rows.pop(entry.instance.id, None)

    def forget(self, instance_id: str) -> None:
        """Its creation did not come about."""
        self._rows.pop(instance_id, None)

    async def remove(self, instance_id: str) -> None:
        """Commit that a finished instance is gone; raise InstanceNotFoundError, StateForbidsError."""
        rows = await fetch(self.connection, "SELECT key, state FROM instance WHERE id = ?", (instance_id,))
        if not rows:
            raise InstanceNotFoundError(instance_id)
        key, state = rows[0]
        if state not in TERMINAL:
            raise forbidden(instance_id, state, "delete")
        await self.connection.write(
            [
                ("DELETE FROM event WHERE instance = ?", (key,)),
                ("DELETE FROM label WHERE instance = ?", (key,)),
                ("DELETE FROM instance WHERE key = ?", (key,)),
                ("UPDATE given SET position = ?, key = ?", (self.position, self.key)),
            ]
        )

    async def _highest(self, number: str, table: str) -> int:
        """The highest position or key ever given, also to what has been deleted since."""
        query = f"SELECT max(given.{number}, coalesce((SELECT max({number}) FROM {table}), 0)) FROM given"  # noqa: S608
        highest: int = (await fetch(self.connection, query))[0][0]
        return highest


def _insertions(statement: str, row: str, values: Sequence[object], ending: str = "") -> Sequence[Statement]:
    """Insert rows, whose values stand one after the other, by as few statements as possible."""
    width = row.count("?")
    size = width * ROWS_PER_STATEMENT
    chunks = [values[start : start + size] for start in range(0, len(values), size)]
    return [(_insertion(statement, row, len(chunk) // width, ending), chunk) for chunk in chunks]


@lru_cache(CACHED_STATEMENTS)
def _insertion(statement: str, row: str, count: int, ending: str) -> str:
    return f"{statement} {','.join([row] * count)} {ending}"


def _fault(creations: Sequence[Pending]) -> Exception | None:
    """What stands against creating them all: a repeated request does not."""
    refusals = [pending.refusal for pending in creations]
    return next((error for error in refusals if error and not isinstance(error, DuplicateRequest)), None)


async def find_conflict(connection: aiosqlite.Connection, wanted: Instance) -> Exception | None:
    """Why an instance cannot be created beside those that are there; None: it can."""
    rows = await fetch(
        connection,
        "SELECT id, coalesce(request_id, ''), request_digest FROM instance"
        " WHERE id = ?1 OR request_id = nullif(?2, '') ORDER BY request_id IS NOT nullif(?2, '') LIMIT 1",
        (wanted.id, wanted.request_id),
    )
    if not rows:
        return None
    taken = Instance(id=rows[0][0], request_id=rows[0][1], request_digest=bytes.fromhex(rows[0][2]))
    return conflict(wanted, taken)
