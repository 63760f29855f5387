"""What is piped into a command: the prompt where none is given, else context beside it."""

import os
import re
import select
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SILENT_S: Final = 1.0
"""How long reading goes on before it is said."""
_PATIENCE_S: Final = 5.0
"""How long the first byte of context may take where no command is seen that might write it."""
_CHUNK_BYTES: Final = 65_536
_BACKTICKS: Final = re.compile(r"`+")


def read_stdin(what: str) -> bytes:
    """Read all of stdin, for as long as it takes; `what` names it to who waits."""
    return b"".join(_chunks(what))


def read_context(limit: int) -> bytes:
    """Read what is piped or redirected in, at most one byte over the limit; empty where nothing is.

    A terminal or a device such as /dev/null is not read, nor a pipe that stays silent because whoever started
    this command has merely left it open.
    """
    if not _holds_data(os.fstat(sys.stdin.fileno()).st_mode):
        return b""
    is_waiting = not _is_ready(_SILENT_S)
    if is_waiting:
        _say("reading context from stdin…")
        # A command in front of this one may take as long as it likes to begin.
        if not _has_producer() and not _is_ready(_PATIENCE_S - _SILENT_S):
            _say(
                f"nothing came from stdin in {_PATIENCE_S:g} s: going on without it (at once with </dev/null)"
            )
            return b""
    data = b""
    for chunk in _chunks("context", is_told=is_waiting):
        data += chunk
        if len(data) > limit:
            break
    return data[: limit + 1]


def fenced(text: str) -> str:
    """The text as a Markdown code block that nothing in it can close."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    end = "" if text.endswith("\n") else "\n"
    return f"{fence}\n{text}{end}{fence}\n"


def _holds_data(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _chunks(what: str, *, is_told: bool = False) -> Iterator[bytes]:
    """Give what stdin holds, piece by piece, and say so where that takes a while."""
    is_told = is_told or sys.stdin.isatty()  # who types knows
    while True:
        if not is_told and not _is_ready(_SILENT_S):
            is_told = True
            _say(f"reading {what} from stdin…")
        chunk = os.read(sys.stdin.fileno(), _CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


def _is_ready(patience_s: float) -> bool:
    """Whether stdin has bytes or has ended, within so many seconds."""
    return bool(select.select([sys.stdin], [], [], patience_s)[0])


def _has_producer() -> bool:
    """Whether a command beside this one, none that started it, can write into stdin; only Linux tells."""
    try:
        pipe = Path(f"/proc/self/fd/{sys.stdin.fileno()}").readlink()
        ancestors = set(_ancestors())
        processes = [each for each in Path("/proc").iterdir() if each.name.isdigit()]
    except OSError:
        return False
    return any(_can_write(each, pipe) for each in processes if int(each.name) not in ancestors)


def _ancestors() -> Iterator[int]:
    """The process, the one that started it, and so on."""
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  the command's own voice
