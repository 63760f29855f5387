"""What keeps a database from being opened or written, in words that say what to do about it."""

import errno
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_FULL: Final = "free disk space"
_NO_PERMISSION: Final = "make it and its folder writable for this user"
_LOCKED: Final = (
    "another program holds it: close that program, which may be a sqlite3 shell with an open transaction "
    "or a backup"
)
_CORRUPT: Final = "restore a backup of it"

_PRIMARY: Final = 0xFF  # SQLite's extended error codes hold the primary one in their low byte
_BY_CODE: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _NO_PERMISSION,
    sqlite3.SQLITE_PERM: _NO_PERMISSION,
    sqlite3.SQLITE_CANTOPEN: f"see that the file is there, and {_NO_PERMISSION}",
    sqlite3.SQLITE_CORRUPT: _CORRUPT,
    sqlite3.SQLITE_NOTADB: "it is some other file: leave that one alone",
}
_NOT_COMMITTED: Final = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_CANTOPEN,
    )
)
_MOVED: Final = "it was moved or deleted while it was in use: put it back, and start again"
_BY_ERRNO: Final[Mapping[int, str]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: f"{_FULL}, or raise this user's quota",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: "mount its file system for writing",
    errno.ENOTDIR: "a part of its path is a file and no folder",
    errno.EEXIST: "a part of its path is a file and no folder",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.ENOLCK: "its file system knows no locks: use a local disk",
    errno.EOPNOTSUPP: "its file system knows no locks: use a local disk",
}


def is_certainly_not_committed(error: sqlite3.Error) -> bool:
    """Return whether an error of a transaction tells that nothing of it will ever be found in the file.

    An I/O error does not: it may be one of the sync, behind a commit that lies in the WAL. A full disk does:
    the commit's own frame is written last, and is not there.
    """
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY in _NOT_COMMITTED


def mend(error: sqlite3.Error | OSError, path: Path) -> str:
    """Return what a person does about an error of the database at `path`."""
    if isinstance(error, OSError):
        return _BY_ERRNO.get(error.errno or 0, "see that its folder can be made and written")
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return _MOVED
    if code & _PRIMARY == sqlite3.SQLITE_IOERR and _is_full(path):
        return _FULL
    return _BY_CODE.get(code & _PRIMARY, "see to its disk, of which the system's log may tell more")


def is_full(error: sqlite3.Error, path: Path) -> bool:
    """Return whether an error of the database at `path` comes of a full disk."""
    return mend(error, path) == _FULL


def _is_full(path: Path) -> bool:
    """Return whether the disk has no room left: SQLite calls some of what comes of that an I/O error."""
    try:
        return shutil.disk_usage(path.parent).free == 0
    except OSError:
        return False
