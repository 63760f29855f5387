"""How log lines are written: as text for people or as JSON, one line each, and never in anybody's way.

A record's fields are what its `extra` holds under `fields`: `logger.info("instance created", extra={"fields":
{"instance": "i1"}})`.
"""

import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from orchestrator.auth import tokens

_MAX_WAITING_LINES: Final = 10_000
_TOKEN: Final = re.compile(rf"{tokens.PREFIX}[0-9a-f]+")
_GATHERING_S: Final = 0.05
_FLUSH_S: Final = 2.0
"""How long the end of the service waits for lines that are not written yet."""
_FEWEST_SECRET_CHARACTERS: Final = 8
"""What is shorter is no secret, as the `EMPTY` that local servers are given for a key."""


class LineFormatter(logging.Formatter):
    """Writes records in one of two styles, in UTC and without secrets.

    `text`: `2026-01-31T12:00:00.000Z INFO instance created instance=i1`; a traceback follows on lines of
    its own.
    `json`: an object with `time`, `level`, `logger`, `message`, the fields, and for a traceback `exception`.
    """

    def __init__(self, style: str, secrets: Sequence[str] = ()) -> None:
        super().__init__()
        self._write_line = _LINES[style]
        self._secrets = [secret for secret in secrets if len(secret) >= _FEWEST_SECRET_CHARACTERS]

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, without its end."""
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        line = self._write_line(record, trace)
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return _TOKEN.sub("***", line) if tokens.PREFIX in line else line


def describe(record: logging.LogRecord) -> str:
    """Return a record's message and its fields, in one line of text."""
    message = record.getMessage()
    if not message.isprintable():
        message = json.dumps(message, ensure_ascii=False)[1:-1]
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return message + "".join(f" {name}={_text(value)}" for name, value in fields.items())


def _text_line(record: logging.LogRecord, trace: str) -> str:
    line = f"{_time(record.created)} {record.levelname} {describe(record)}"
    return f"{line}\n{trace}" if trace else line


def _json_line(record: logging.LogRecord, trace: str) -> str:
    entry = {
        "time": _time(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
        **getattr(record, "fields", {}),
    }
    if trace:
        entry["exception"] = trace
    return json.dumps(entry, ensure_ascii=False, default=str)


_LINES: Final[Mapping[str, Callable[[logging.LogRecord, str], str]]] = {
    "text": _text_line,
    "json": _json_line,
}


class BackgroundHandler(logging.Handler):
    """Writes lines in a thread of its own: whoever does not read them holds up nobody.

    Once too many wait to be written, new ones are dropped, and how many is written when there is room again.
    """

    def __init__(self, descriptor: int, max_waiting: int = _MAX_WAITING_LINES) -> None:
        """`descriptor` is the open file that lines are written to.

        Not a stream: a thread that waits in one holds its lock, and the process could not end.
        """
        super().__init__()
        self._descriptor = descriptor
        self._max_waiting = max_waiting
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._is_closing = False
        # A daemon: a process must end though nobody takes its last lines.
        self._thread = threading.Thread(target=self._write, name="log writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line over to be written."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  as logging does it: a line must not fail what it is about
            self.handleError(record)
            return
        with self._changed:
            if len(self._waiting) < self._max_waiting:
                self._waiting.append(line)
                if len(self._waiting) == 1:
                    self._changed.notify()
            else:
                self._dropped += 1

    def _write(self) -> None:
        while lines := self._wait_for_lines():
            data = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
            with suppress(OSError):  # nobody is there to read them any more
                while data:
                    data = data[os.write(self._descriptor, data) :]

    def _wait_for_lines(self) -> Sequence[str]:
        """Take the lines that wait; none: the handler is closed, and all are written."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            # Lines come together: a thread that wakes for each would take the loop's time.
            self._changed.wait_for(lambda: self._is_closing, _GATHERING_S)
            lines = [*self._waiting]
            self._waiting.clear()
            if lines and self._dropped:
                dropped = logging.makeLogRecord(
                    {
                        "name": __name__,
                        "levelno": logging.WARNING,
                        "levelname": "WARNING",
                        "msg": "log lines were dropped: they were not read as fast as they came",
                        "fields": {"count": self._dropped},
                    }
                )
                self._dropped = 0
                lines.append(self.format(dropped))
            return lines

    def close(self) -> None:
        """Write what waits, as far as that takes no longer than a moment."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(_FLUSH_S)
        super().close()


@contextmanager
def logging_to(descriptor: int, *, level: str, style: str, secrets: Sequence[str] = ()) -> Iterator[None]:
    """Write the lines of this process to an open file while the block runs.

    `level` and `style` are the settings LOG_LEVEL and LOG_FORMAT; `secrets` are left out of every line.
    """
    handler = BackgroundHandler(descriptor)
    handler.setFormatter(LineFormatter(style, secrets))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()


def _time(time_s: float) -> str:
    """Write seconds since the epoch in UTC, to the millisecond."""
    millis = int(time_s * 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(millis // 1000))}.{millis % 1000:03}Z"


def _text(value: object) -> str:
    """Write a field's value: as it is where it is one word, else as JSON does."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    is_word = text.isprintable() and text and not any(sign in text for sign in ' "=')
    return text if is_word else json.dumps(text, ensure_ascii=False)
