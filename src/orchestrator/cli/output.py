"""The command's stdout and stderr: what goes wrong with them is no fault of the service's."""

import io
import os
import select
import sys
from typing import Any

from orchestrator.errors import OrchestratorError


class OutputError(OrchestratorError):
    """What a command prints cannot be written."""


class _File(io.FileIO):
    """Written to for as long as that takes, where another program has made it non-blocking."""

    def write(self, data: Any) -> int:
        written: int | None = None
        while (written := super().write(data)) is None:
            select.select((), (self,), ())
        return written


class _Stdout(_File):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise  # whoever read has seen enough
        except OSError as error:
            raise OutputError(f"cannot write to stdout: {error.strerror}") from None


class _Stderr(_File):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError:
            return len(data)  # nothing is given up for want of a place to say how it goes


def set_up() -> None:
    """Make this process's standard streams ones that can be relied on; one that is closed leads nowhere."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # What this process opens next would otherwise be taken for its stdin, stdout or stderr.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    is_unbuffered = getattr(sys.stdout, "write_through", False)
    stdout, stderr = _Stdout(1, "w", closefd=False), _Stderr(2, "w", closefd=False)
    sys.stdout = _text(stdout, sys.stdout, is_eager=is_unbuffered or stdout.isatty())
    sys.stderr = _text(stderr, sys.stderr, is_eager=True)


def _text(file: _File, before: Any, *, is_eager: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=getattr(before, "encoding", "utf-8"),
        errors="backslashreplace",  # a narrow locale must not turn an answer into a traceback
        line_buffering=is_eager,
    )


def discard() -> None:
    """Let what is still to be written to stdout go nowhere, so that it cannot fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
