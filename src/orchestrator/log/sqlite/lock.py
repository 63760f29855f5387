"""One server a database."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import StorageError


class DatabaseLock:
    """Holds `<database>.lock` for this process.

    Raise StorageError when another server has it, OSError where it cannot be written.

    The kernel lets go of it when the process ends, however it ends.
    """

    def __init__(self, database: Path, setting: str) -> None:
        self._file = os.open(f"{database}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        self._is_held = True
        try:
            self._acquire(database, setting)
        except BaseException:
            self.release()
            raise

    def _acquire(self, database: Path, setting: str) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._file, 20, 0).decode(errors="replace").strip() or "unknown"
            raise StorageError(
                f"database {database} is in use by another server (process {owner}): "
                f"stop that server, or set {setting} to another path"
            ) from None
        with suppress(OSError):  # the lock is what counts; a full disk has no room for who holds it
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let another server have the database; a second time does nothing."""
        if self._is_held:
            self._is_held = False
            os.close(self._file)
