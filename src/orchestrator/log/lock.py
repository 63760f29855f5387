"""One server a database."""

import fcntl
import os
from pathlib import Path

from orchestrator.errors import StorageError


class DatabaseLock:
    """Holds `<database>.lock` for this process; raise StorageError when another server has it.

    The kernel lets go of it when the process ends, however it ends.
    """

    def __init__(self, database: Path, setting: str) -> None:
        self._file = Path(f"{database}.lock").open("a+")  # noqa: SIM115  held for as long as the lock
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise StorageError(
                f"database {database} is in use by another server (process {owner}): "
                f"stop that server, or set {setting} to another path"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let another server have the database."""
        self._file.close()
