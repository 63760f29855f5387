"""The errors that SQLite and the system really raise, and the mend that is reported."""

import errno
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.log import storage_faults
from orchestrator.log.storage_faults import mend


def a_lock(path: Path) -> None:
    with closing(sqlite3.connect(path)) as shell, closing(sqlite3.connect(path, timeout=0)) as ours:
        shell.execute("BEGIN EXCLUSIVE")
        ours.execute("CREATE TABLE other (x)")


def a_table_lock(path: Path) -> None:
    uri = f"{path.as_uri()}?cache=shared"
    with (
        closing(sqlite3.connect(uri, uri=True)) as shell,
        closing(sqlite3.connect(uri, uri=True, timeout=0)) as ours,
    ):
        shell.execute("INSERT INTO it VALUES (1)")
        ours.execute("SELECT * FROM it").fetchall()


def no_room(path: Path) -> None:
    with closing(sqlite3.connect(path)) as ours:
        ours.execute("PRAGMA max_page_count = 2")
        ours.execute("INSERT INTO it VALUES (zeroblob(100000))")


def a_file_without_write_permission(path: Path) -> None:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as ours:
        ours.execute("INSERT INTO it VALUES (1)")


def a_file_that_is_gone(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as ours:
        ours.execute("SELECT * FROM it")


def a_file_that_was_moved(path: Path) -> None:
    with closing(sqlite3.connect(path)) as ours:
        ours.execute("SELECT * FROM it")
        path.rename(path.with_suffix(".old"))
        ours.execute("INSERT INTO it VALUES (1)")


def another_file(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)
    with closing(sqlite3.connect(path)) as ours:
        ours.execute("SELECT * FROM it")


def a_damaged_file(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:200] = b"\xff" * 100
    path.write_bytes(data)
    with closing(sqlite3.connect(path)) as ours:
        ours.execute("SELECT * FROM it")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (a_lock, "another program holds it"),
        (a_table_lock, "another program holds it"),
        (no_room, "free disk space"),
        (a_file_without_write_permission, "writable for this user"),
        (a_file_that_is_gone, "see that the file is there"),
        (a_file_that_was_moved, "it was moved or deleted"),
        (another_file, "it is some other file"),
        (a_damaged_file, "restore a backup"),
    ],
)
def test_each_sqlite_fault_has_its_own_cause(
    fault: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE it (x)")
    with pytest.raises(sqlite3.Error) as caught:
        fault(path)
    assert words in mend(caught.value, path)
    assert ("disk space" in mend(caught.value, path)) == (fault is no_room)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free disk space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "writable for this user"),
        (errno.EROFS, "mount its file system for writing"),
        (errno.ENOTDIR, "a part of its path is a file"),
        (errno.ENOLCK, "use a local disk"),
        (errno.ENOENT, "its folder can be made"),
    ],
)
def test_each_system_fault_has_its_own_cause(number: int, words: str) -> None:
    assert words in mend(OSError(number, "no"), Path("log.db"))


def test_an_io_error_on_a_full_disk_is_reported_as_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    assert "see to its disk" in mend(error, Path("log.db"))
    monkeypatch.setattr(storage_faults, "_is_full", lambda _: True)
    assert mend(error, Path("log.db")) == "free disk space"
