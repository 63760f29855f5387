"""The SQLite log's tables, and how an older file becomes a newer one."""

import sqlite3
from pathlib import Path
from typing import Final

import aiosqlite

from orchestrator.errors import StorageError
from orchestrator.v1.orchestrator_pb2 import EventBatch

MIGRATIONS: Final = (
    # 1: `event` is the truth; `instance` and `label` are derived from it in the same transaction, so that
    # instances can be found without folding all of them. Keys and positions grow in commit order. `data` is
    # an EventBatch that holds one event: rows joined are a page.
    """
    CREATE TABLE instance (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        state INTEGER NOT NULL,
        request_id TEXT UNIQUE,
        request_digest TEXT NOT NULL
    ) STRICT;
    CREATE INDEX instance_unfinished ON instance (key) WHERE state NOT IN (6,7,8);
    CREATE INDEX instance_state ON instance (state, key);
    CREATE TABLE label (
        instance INTEGER NOT NULL REFERENCES instance (key),
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (name, value, instance)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE event (
        position INTEGER PRIMARY KEY,
        instance INTEGER NOT NULL REFERENCES instance (key),
        sequence INTEGER NOT NULL,
        data BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX event_sequence ON event (instance, sequence);
    """,
    # 2: finished instances can be deleted, and found by when they finished. `given` remembers the highest
    # numbers, so that those of deleted rows are not given again.
    """
    ALTER TABLE instance ADD COLUMN end_time_s REAL NOT NULL DEFAULT 0;
    UPDATE instance SET end_time_s = event_time_s(
        (SELECT data FROM event WHERE instance = instance.key ORDER BY sequence DESC LIMIT 1)
    ) WHERE state IN (6,7,8);
    CREATE INDEX instance_end ON instance (end_time_s) WHERE end_time_s > 0;
    CREATE INDEX label_instance ON label (instance);
    CREATE TABLE given (position INTEGER NOT NULL, key INTEGER NOT NULL) STRICT;
    INSERT INTO given VALUES (0, 0);
    """,
    # 3: an instance belongs to a tenant, and its row says where it stands: its last sequence, which every
    # append has to continue, and the epoch of its lease. `summary` is what lists show of an instance at rest,
    # as of a sequence; `deletion` keeps its place in the order of positions for an instance that is gone.
    """
    CREATE TABLE instance_3 (
        key INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        id TEXT NOT NULL,
        state INTEGER NOT NULL,
        last_sequence INTEGER NOT NULL,
        epoch INTEGER NOT NULL DEFAULT 0,
        request_id TEXT,
        request_digest TEXT NOT NULL,
        end_time_s REAL NOT NULL,
        UNIQUE (tenant, id),
        UNIQUE (tenant, request_id)
    ) STRICT;
    INSERT INTO instance_3 (key, tenant, id, state, last_sequence, request_id, request_digest, end_time_s)
        SELECT key, '', id, state, (SELECT max(sequence) FROM event WHERE instance = instance.key),
            request_id, request_digest, end_time_s FROM instance;
    DROP TABLE instance;
    ALTER TABLE instance_3 RENAME TO instance;
    CREATE INDEX instance_unfinished ON instance (key) WHERE state NOT IN (6,7,8);
    CREATE INDEX instance_state ON instance (state, key);
    CREATE INDEX instance_end ON instance (end_time_s) WHERE end_time_s > 0;
    CREATE TABLE summary (
        instance INTEGER PRIMARY KEY REFERENCES instance (key),
        sequence INTEGER NOT NULL,
        view BLOB NOT NULL
    ) STRICT;
    CREATE TABLE deletion (
        position INTEGER PRIMARY KEY,
        instance INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        id TEXT NOT NULL,
        labels TEXT NOT NULL
    ) STRICT;
    """,
    # 4: catalogues of workers that events name by their digest, instead of each holding a whole one.
    """
    CREATE TABLE catalogue (
        digest TEXT PRIMARY KEY,
        data BLOB NOT NULL
    ) STRICT;
    """,
)
"""Scripts by version: the first makes version 1 of an empty file, each next one the next version."""

_APPLICATION_ID: Final = 0x6F726368  # "orch": tells our files from other SQLite databases


async def migrate(connection: aiosqlite.Connection, path: Path, setting: str) -> None:
    """Bring a database to the newest version; raise StorageError when it is not ours or newer than that."""
    application = await _pragma(connection, "application_id")
    version = await _pragma(connection, "user_version")
    if application not in (0, _APPLICATION_ID) or (not application and await _has_tables(connection)):
        raise StorageError(f"database {path} belongs to another program: set {setting} to another path")
    if version > len(MIGRATIONS):
        raise StorageError(
            f"database {path} has version {version} and this release knows up to {len(MIGRATIONS)}: "
            "use the release that wrote it, or a newer one"
        )
    await connection.create_function("event_time_s", 1, _event_time_s, deterministic=True)
    await connection.execute("PRAGMA foreign_keys = OFF")  # a table is replaced while others refer to it
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        try:
            await connection.executescript(
                f"BEGIN IMMEDIATE; {script} PRAGMA application_id = {_APPLICATION_ID};"
                f" PRAGMA user_version = {number}; COMMIT;"
            )
        except sqlite3.Error:
            await connection.rollback()
            raise
    await connection.execute("PRAGMA foreign_keys = ON")


async def is_up_to_date(connection: aiosqlite.Connection) -> bool:
    """Return whether a database is ours and of the newest version."""
    is_ours = await _pragma(connection, "application_id") == _APPLICATION_ID
    return is_ours and await _pragma(connection, "user_version") == len(MIGRATIONS)


def _event_time_s(data: bytes) -> float:
    """Return when a stored event happened, in seconds since the epoch."""
    (event,) = EventBatch.FromString(data).events
    return event.event_time.seconds + event.event_time.nanos / 1e9


async def _pragma(connection: aiosqlite.Connection, name: str) -> int:
    async with connection.execute(f"PRAGMA {name}") as cursor:
        row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def _has_tables(connection: aiosqlite.Connection) -> bool:
    async with connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1") as cursor:
        return await cursor.fetchone() is not None
