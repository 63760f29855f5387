"""Reading stdin: the prompt where none is given, else context beside it."""

import os
import re
import select
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_NOTICE_DELAY_S: Final = 1.0
"""How long reading goes on before a note is printed."""
_FIRST_BYTE_TIMEOUT_S: Final = 5.0
"""How long the first byte of context may take where no writer of the pipe is found."""
_CHUNK_BYTES: Final = 65_536
_BACKTICKS: Final = re.compile(r"`+")


def read_stdin(what: str) -> bytes:
    """Read all of stdin without a timeout; `what` names the data in a note."""
    return b"".join(_read_chunks(what))


def read_context(limit: int) -> bytes:
    """Read what is piped or redirected in, at most one byte over the limit; empty where nothing is.

    A terminal or a device such as /dev/null is not read, nor a silent pipe that the parent process has merely
    left open.
    """
    if not _is_readable_kind(os.fstat(sys.stdin.fileno()).st_mode):
        return b""
    is_delayed = not _is_ready(_NOTICE_DELAY_S)
    if is_delayed:
        _print_note("reading context from stdin…")
        # A command in front of this one may take as long as it likes to begin.
        if not _has_writer() and not _is_ready(_FIRST_BYTE_TIMEOUT_S - _NOTICE_DELAY_S):
            _print_note(
                f"nothing came from stdin in {_FIRST_BYTE_TIMEOUT_S:g} s: "
                "going on without it (at once with </dev/null)"
            )
            return b""
    data = b""
    for chunk in _read_chunks("context", is_announced=is_delayed):
        data += chunk
        if len(data) > limit:
            break
    return data[: limit + 1]


def code_block(text: str) -> str:
    """Wrap the text in a Markdown code block that nothing in it can close."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    end = "" if text.endswith("\n") else "\n"
    return f"{fence}\n{text}{end}{fence}\n"


def _is_readable_kind(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _read_chunks(what: str, *, is_announced: bool = False) -> Iterator[bytes]:
    """Yield the chunks of stdin; print a note where they are delayed."""
    is_announced = is_announced or sys.stdin.isatty()  # a prompt is typed, not awaited
    while True:
        if not is_announced and not _is_ready(_NOTICE_DELAY_S):
            is_announced = True
            _print_note(f"reading {what} from stdin…")
        chunk = os.read(sys.stdin.fileno(), _CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


def _is_ready(timeout_s: float) -> bool:
    """Return whether stdin has bytes or has ended, within so many seconds."""
    return bool(select.select([sys.stdin], [], [], timeout_s)[0])


def _has_writer() -> bool:
    """Return whether a process other than an ancestor can write to stdin; known on Linux only."""
    try:
        pipe = Path(f"/proc/self/fd/{sys.stdin.fileno()}").readlink()
        ancestors = set(_ancestors())
        processes = [each for each in Path("/proc").iterdir() if each.name.isdigit()]
    except OSError:
        return False
    return any(_can_write(each, pipe) for each in processes if int(each.name) not in ancestors)


def _ancestors() -> Iterator[int]:
    """Yield the ids of this process and its ancestors."""
    number = os.getpid()
    while number > 0:
        yield number
        status = Path(f"/proc/{number}/stat").read_text()
        number = int(status.rpartition(")")[2].split()[1])


def _can_write(process: Path, pipe: Path) -> bool:
    try:
        links = list((process / "fd").iterdir())
    except OSError:  # another user's, or gone
        return False
    for link in links:
        try:
            if link.readlink() == pipe and link.lstat().st_mode & stat.S_IWUSR:
                return True
        except OSError:
            continue
    return False


def _print_note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  the command's own voice
