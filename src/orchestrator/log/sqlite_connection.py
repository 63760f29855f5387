"""A connection to the SQLite log's file."""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import aiosqlite

BUSY_S: Final = 5.0
"""How long SQLite waits for another program's lock."""

CACHED_STATEMENTS: Final = 512  # an insert for each number of rows is a statement of its own


async def connect(path: Path, *, make: bool = True) -> aiosqlite.Connection:
    """Open a file, or make it where it may be made; raise sqlite3.Error.

    Every commit is synced, and a transaction takes its lock at once.
    """
    connection = await aiosqlite.connect(
        f"{path.absolute().as_uri()}?mode={'rwc' if make else 'rw'}",
        uri=True,
        timeout=BUSY_S,
        isolation_level="IMMEDIATE",
        cached_statements=CACHED_STATEMENTS,
    )
    try:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        await connection.close()
        raise
    return connection


async def fetch(
    connection: aiosqlite.Connection, query: str, values: Iterable[Any] = ()
) -> Sequence[sqlite3.Row]:
    """All rows at once: no cursor is left open."""
    return list(await connection.execute_fetchall(query, values))
