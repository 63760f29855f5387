"""Storage that fails: inside of this process, and by strace's injection in another one."""

import asyncio
import shutil
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from orchestrator.log.sqlite.connection import Connection, Statement


def disk_full() -> sqlite3.OperationalError:
    return _error("database or disk is full", sqlite3.SQLITE_FULL)


def sync_failed() -> sqlite3.OperationalError:
    return _error("disk I/O error", sqlite3.SQLITE_IOERR_FSYNC)


def _error(message: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


class FailingStorage:
    """Every transaction of every SQLite log passes here; a test lets it fail, or hang."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: sqlite3.Error | None = None
        """What each transaction fails with; None: it does not."""
        self.answers = threading.Event()
        """Unset: transactions hang until it is set."""
        self.answers.set()
        self.transactions = 0
        write = Connection._write

        def pass_through(connection: Connection, statements: Sequence[Statement]) -> None:
            self.transactions += 1
            self.answers.wait(60)
            if self.error:
                raise self.error
            write(connection, statements)

        monkeypatch.setattr(Connection, "_write", pass_through)


@asynccontextmanager
async def injected(pid: int, *injections: str) -> AsyncIterator[None]:
    """Let system calls of a process fail while the block runs, as `strace -e inject=` does; skip without it.

    Each is like `fdatasync:error=EIO`.
    """
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    arguments = [part for each in injections for part in ("-e", f"inject={each}")]
    names = ",".join(each.partition(":")[0] for each in injections)
    strace = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-p", str(pid), "-e", f"trace={names}", *arguments, "-o", "/dev/null"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert strace.stderr
    line = (await strace.stderr.readline()).decode()
    if "attached" not in line:
        await strace.communicate()
        pytest.skip(f"strace cannot attach here: {line}")
    try:
        yield
    finally:
        if strace.returncode is None:
            strace.send_signal(signal.SIGINT)
        await strace.communicate()
