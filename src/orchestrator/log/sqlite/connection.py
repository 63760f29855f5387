"""A connection to the SQLite log's file."""

import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiosqlite

BUSY_S: Final = 5.0
"""How long SQLite waits for another program's lock."""

CACHED_STATEMENTS: Final = 512  # an insert for each number of rows is a statement of its own

Statement = tuple[str, Sequence[object]]
"""SQL and its values."""


class Connection(aiosqlite.Connection):
    """A connection that can also write a whole transaction in one trip to its thread.

    Each trip takes about as long as a statement, and the next one begins only when the loop comes round.
    aiosqlite has no public way to have a function run there: each release of it has to be tried first.
    """

    async def write(self, statements: Sequence[Statement]) -> None:
        """Execute statements and commit; raise sqlite3.Error, with the transaction left open."""
        await self._execute(self._write, statements)  # type: ignore[no-untyped-call]

    def _write(self, statements: Sequence[Statement]) -> None:
        for sql, values in statements:
            self._conn.execute(sql, values)
        self._conn.commit()


async def connect(path: Path, *, make: bool = True, busy_s: float | None = None) -> Connection:
    """Open a file, or make it where it may be made; raise sqlite3.Error.

    `busy_s` is how long it waits for another program's lock; None: BUSY_S. Every commit is synced, a
    transaction takes its lock at once, and rows refer only to rows that are there.
    """
    connect_here = partial(
        sqlite3.connect,
        f"{path.absolute().as_uri()}?mode={'rwc' if make else 'rw'}",
        uri=True,
        timeout=BUSY_S if busy_s is None else busy_s,
        isolation_level="IMMEDIATE",
        cached_statements=CACHED_STATEMENTS,
    )
    connection = Connection(connect_here, iter_chunk_size=64)
    await connection
    try:
        ((pages,),) = await fetch(connection, "PRAGMA page_count")
        if not pages:  # a file that is there stays as it is, and setting this would wait for its writer
            await connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        await connection.close()
        raise
    return connection


async def connect_frozen(path: Path) -> Connection:
    """Open a file for reading that nobody writes and that has no WAL, making no file beside it.

    Raise sqlite3.Error.
    """
    connect_here = partial(
        sqlite3.connect,
        f"{path.absolute().as_uri()}?mode=ro&immutable=1",
        uri=True,
        cached_statements=CACHED_STATEMENTS,
    )
    connection = Connection(connect_here, iter_chunk_size=64)
    await connection
    return connection


async def connect_reader(path: Path) -> Connection:
    """Open a file for reading only; raise sqlite3.Error."""
    connection = await connect(path, make=False)
    await connection.execute("PRAGMA query_only = ON")
    await connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


async def fetch(
    connection: aiosqlite.Connection, query: str, values: Iterable[Any] = ()
) -> Sequence[sqlite3.Row]:
    """Return all rows at once: no cursor is left open."""
    return list(await connection.execute_fetchall(query, values))
