"""How an answer is read while it is still being written: Server-Sent SseDecoder, and what they add up to."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from orchestrator.core.replies import Finish
from orchestrator.errors import ModelError
from orchestrator.models.http.finish import finish_of, reason_of

# So long a stream that says nothing more is waited for after a reason to stop.
QUIET_S: Final = 8.0
LONG_QUIET_S: Final = 30.0  # where text has come after one before
SHORT_QUIET_S: Final = 5.0  # where all has been said

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_MAX_READ_AGAIN: Final = 64 * 1024
"""How many bytes are read to tell whether an event is whole; one of more ends with a blank line only."""
_MAX_OBJECT_BYTES: Final = 1024 * 1024
_MAX_SIGNS: Final = 50_000
"""How many signs that begin a value an event may have that ends with the stream: some 5 ms."""
_SIGNS: Final = (b",", b"[", b"{")
_MAX_USAGE_FIELDS: Final = 64
_LAST_EVENT: Final = b"[DONE]"
_LONGEST_LAST_EVENT: Final = 32


class Event(NamedTuple):
    """A Server-Sent Event."""

    data: bytes
    name: bytes = b""
    """Its type, which most events have not; `error` too where the field itself is named so."""


class SseDecoder:
    """Takes a stream's bytes and gives each Server-Sent Event.

    Lines may end in any way. Comments and other fields are passed over, and a byte-order mark wherever a line
    begins. An event whose JSON is whole ends where the next begins, though no blank line is between them.
    """

    def __init__(self) -> None:
        self.has_ended = False
        """Whether the event has come after which none follows: not every endpoint closes the stream then."""
        self._name = b""
        self._data: list[bytes] = []
        self._line = bytearray()
        """What there is of the last line."""
        self._read_again = 0
        """How many bytes of the event have been read to tell whether it is whole."""
        self._ended_in_return = False
        """Whether the last byte was a carriage return: a line feed after it ends no other line."""

    def feed(self, chunk: bytes) -> Sequence[Event]:
        """Return the events that are whole with this chunk."""
        if self._ended_in_return:
            chunk = chunk.removeprefix(b"\n")
        self._ended_in_return = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._line += chunk
        if b"\n" not in chunk:
            return ()
        *lines, flush = bytes(self._line).split(b"\n")
        self._line = bytearray(flush)
        events: list[Event] = []
        for line in lines:
            events += self._process_line(line)
        return events

    def flush(self) -> Sequence[Event]:
        """Return the events that are left at the end of the stream; no half event."""
        line, self._line = bytes(self._line), bytearray()
        field = _value(line, b"data:") or b""
        is_whole = _is_object(field) or _is_last(field)
        return [*(self._process_line(line) if is_whole else ()), *self._dispatch()]

    def _process_line(self, line: bytes) -> Sequence[Event]:
        if not line:
            return self._dispatch()
        events: Sequence[Event] = ()
        for prefix in (b"data:", b"error:"):
            if data := _value(line, prefix):
                if self._may_be_whole() and _is_object(b"\n".join(self._data)):
                    events = self._dispatch()
                self._data.append(data)
                if prefix == b"error:":
                    self._name = b"error"
                return events
        if (name := _value(line, b"event:")) is not None:
            self._name = name
        return events

    def _may_be_whole(self) -> bool:
        """Return whether the lines so far may be an object: those of a long event are not read again."""
        if self._read_again > _MAX_READ_AGAIN:
            return False
        if not (self._data and self._data[0].startswith(b"{") and self._data[-1].endswith(b"}")):
            return False
        self._read_again += sum(map(len, self._data))
        return self._read_again <= _MAX_READ_AGAIN

    def _dispatch(self) -> Sequence[Event]:
        data, self._data = b"\n".join(self._data), []
        name, self._name = self._name, b""
        self._read_again = 0
        self.has_ended |= _is_last(data)
        return [Event(data, name)] if data and not self.has_ended else []


def _value(line: bytes, field: bytes) -> bytes | None:
    """Return the value of a field in a line; None: it is another field."""
    line = line.removeprefix(BYTE_ORDER_MARK)
    return line[len(field) :].strip() if line.startswith(field) else None


def _is_last(data: bytes) -> bool:
    return len(data) <= _LONGEST_LAST_EVENT and data.strip(b'"').upper() == _LAST_EVENT


def _is_object(data: bytes) -> bool:
    """Return whether a JSON object is whole; one that takes long to read is taken for none."""
    if (
        not data.startswith(b"{")
        or len(data) > _MAX_OBJECT_BYTES
        or sum(map(data.count, _SIGNS)) > _MAX_SIGNS
    ):
        return False
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


class Accumulator(ABC):
    """An answer that is being streamed, put together from its events; each API has its own.

    Of several reasons to stop the last one counts, but where no text came in between a normal one does not
    take back another kind: some gateways end every stream with `stop`.
    """

    def __init__(self) -> None:
        self.reason = ""
        """Why the model stopped, as far as it is known; empty: it was not said."""
        self.is_contradicted = False
        """Whether text has come after a reason to stop: then such a reason is no sign of the end here."""
        self.is_complete = False
        """Whether all has come that an answer is made of, its usage too."""
        self.has_ended = False
        """Whether the API's own last event has come."""
        self.has_text = False
        self.usage: Mapping[Any, Any] = {}
        self.response_id: object = None
        """What the API calls the answer, as far as that is known."""
        self.changes = 0
        """How often an event brought something new, not only that the endpoint is there."""
        self._has_text_after_reason = False
        self._meaningless: set[str] = set()
        """Reasons to stop behind which the model went on, as `in_progress` in every chunk."""

    @property
    def silence_limit_s(self) -> float | None:
        """After how many seconds with nothing new the answer is whole; None: it is not yet known to be.

        Some gateways send a reason to stop with every chunk, and some never close a stream.
        """
        is_normal = finish_of(self.reason) is Finish.NORMAL
        if not self.reason or (is_normal and not self.has_text):
            return None
        if self.is_contradicted:
            return LONG_QUIET_S
        return SHORT_QUIET_S if self.is_complete else QUIET_S

    def is_whole(self, broken: ModelError | None) -> bool:
        """Return whether the answer is complete although the stream just ended, fell silent or broke.

        A reason to stop says that all was written, but not on a broken connection where text has followed
        such a reason before.
        """
        match broken.reason if broken else "":
            case "" | "STREAM_CUT" | "IDLE_TIMEOUT":
                return self.has_ended or bool(self.reason)
            case "CONNECTION_FAILED":
                return bool(self.reason) and not self.is_contradicted
            case _:
                return False

    @abstractmethod
    def add(self, event: Mapping[str, Any]) -> str:
        """Take in the next event; the text that it adds."""

    @abstractmethod
    def body(self) -> Mapping[str, Any]:
        """Return the body that an answer in one piece would have had, as far as it has come."""

    def note_text(self, text: str, *, is_thought: bool = False) -> None:
        """Something was written."""
        if not text:
            return
        self.changes += 1
        self.has_text |= not is_thought and not text.isspace()
        if self.reason:
            self.is_contradicted = self._has_text_after_reason = True
            self._meaningless.add(self.reason)

    def note_reason(self, value: object) -> None:
        """Record why the model stopped, if an event says so."""
        reason = reason_of(value)
        if not reason:
            return
        is_weaker = finish_of(reason) is Finish.NORMAL and finish_of(self.reason) is not Finish.NORMAL
        is_weaker &= self.reason not in self._meaningless
        if reason != self.reason and (self._has_text_after_reason or not is_weaker):
            self.reason = reason
            self.changes += 1
        self._has_text_after_reason = False

    def note_id(self, value: object) -> None:
        """Record the id of the answer, if an event holds it."""
        self.response_id = self.response_id or value

    def note_usage(self, usage: Mapping[Any, Any]) -> None:
        """Record the usage that an event holds: totals, each of which may come alone."""
        usage = {name: value for name, value in islice(usage.items(), _MAX_USAGE_FIELDS) if value}
        usage = {**dict(islice(self.usage.items(), _MAX_USAGE_FIELDS)), **usage}
        self.changes += usage != self.usage
        self.usage = usage
