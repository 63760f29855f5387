"""The standard streams of the command; their errors are kept apart from those of the service."""

import io
import os
import select
import sys
from typing import Any

from orchestrator.errors import OrchestratorError


class OutputError(OrchestratorError):
    """Stdout cannot be written."""


class _BlockingFile(io.FileIO):
    """Blocks on writes even where another program has set the descriptor to non-blocking."""

    def write(self, data: Any) -> int:
        written: int | None = None
        while (written := super().write(data)) is None:
            select.select((), (self,), ())
        return written


class _Stdout(_BlockingFile):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise  # the reader has closed the pipe
        except OSError as error:
            raise OutputError(f"cannot write to stdout: {error.strerror}") from None


class _Stderr(_BlockingFile):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError:
            return len(data)  # a command goes on without its progress output


def set_up_streams() -> None:
    """Replace the standard streams by reliable ones; open /dev/null for a closed descriptor.

    A closed stdout stays one that cannot be written: what a command prints is not lost in silence.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The next file that is opened would otherwise become stdin, stdout or stderr.
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    is_unbuffered = getattr(sys.stdout, "write_through", False)
    stdout, stderr = _Stdout(1, "w", closefd=False), _Stderr(2, "w", closefd=False)
    sys.stdout = _text_stream(stdout, sys.stdout, is_line_buffered=is_unbuffered or stdout.isatty())
    sys.stderr = _text_stream(stderr, sys.stderr, is_line_buffered=True)


def _text_stream(file: _BlockingFile, replaced: Any, *, is_line_buffered: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=getattr(replaced, "encoding", "utf-8"),
        errors="backslashreplace",  # a narrow locale must not turn an answer into a traceback
        line_buffering=is_line_buffered,
    )


def discard_stdout() -> None:
    """Redirect stdout to /dev/null, so that flushing the rest cannot fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
