"""Formatting of text for people. Foreign text must not control a terminal."""

import functools
import re
import shutil
import sys
from pathlib import Path
from typing import Final

_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all of C0 and C1 but tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what reverses the order of letters
    "\u2028\u2029]"
)
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400


def strip_controls(text: str) -> str:
    r"""Escape the control characters of a text: ESC becomes `\x1b`. Tabs and newlines stay."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def one_line(text: str, limit: int | None = None) -> str:
    """Return the text without control characters on one line, truncated to `limit` characters."""
    line = strip_controls(" ".join(text.split()))
    return line if limit is None or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def duration(seconds: float) -> str:
    """Format a time span with two units at most: `4.2s`, `14s`, `2m05s`, `1h02m`."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:  # noqa: PLR2004  what rounds to 10.0 is shown without its decimal
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole}s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m{whole % _MINUTE_S:02}s"
    return f"{whole // _HOUR_S}h{whole % _HOUR_S // _MINUTE_S:02}m"


def age(seconds: float) -> str:
    """Format a time span in its largest unit: `12s`, `3m`, `2h`, `5d`."""
    whole = max(0, int(seconds))
    for unit_s, unit in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "m")):
        if whole >= unit_s:
            return f"{whole // unit_s}{unit}"
    return f"{whole}s"


def pluralize(number: int, noun: str) -> str:
    """Format a number and its noun: `1 subtask`, `12,340 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def command(words: str) -> str:
    """Build a command line to paste: `orchestrator …`, with its path where it is not on the PATH."""
    return f"{_program()} {words}"


@functools.cache
def _program() -> str:
    beside = Path(sys.executable).with_name("orchestrator")
    if shutil.which("orchestrator") or not beside.exists():
        return "orchestrator"
    shown = beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside
    return str(shown)
