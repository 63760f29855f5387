"""How an answer is read while it is still being written."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Literal

from orchestrator.core.plan import well_formed
from orchestrator.models.base import Listener

MOST_UNREAD_BYTES: Final = 64 * 1024
"""So much of a stream is put aside at most while nobody listens."""

_LAST_EVENT: Final = b"[DONE]"
_OPENING: Final = "<think>"
_CLOSING: Final = "</think>"


class Stream:
    """A streamed answer's bytes on their way to a listener.

    While somebody listens they are read as they come. While nobody does they are put aside, and read in one
    go when somebody comes, when there are MOST_UNREAD_BYTES of them, and at the end.
    """

    def __init__(self, read: Callable[[bytes], str], listener: Listener | None) -> None:
        """`read` makes of an event's data the text that it adds; it raises ModelError where it cannot."""
        self.has_ended = False
        """Whether the event has been read after which none follows."""
        self._read = read
        self._listener = listener
        self._events = Events()
        self._unread = bytearray()
        self._is_ending = False
        """Whether the last event has begun to come."""
        self._failure: Exception | None = None
        if listener is not None:
            listener.on_arrival(self._catch_up)

    def add(self, chunk: bytes) -> None:
        """Take in what has come; raise what `read` raises."""
        self._unread += chunk
        # Not every endpoint closes the connection after its last event, nor sends that in one piece.
        self._is_ending |= self._unread.find(_LAST_EVENT, -len(chunk) - len(_LAST_EVENT)) >= 0
        if (
            (self._listener is not None and self._listener.is_listening)
            or len(self._unread) >= MOST_UNREAD_BYTES
            or self._is_ending
            or self._failure
        ):
            self.read_on()

    def read_on(self) -> None:
        """Read what was put aside; raise what `read` raises, and once it has, the same ever after."""
        unread, self._unread = self._unread, bytearray()
        self._take(self._events.feed(unread))

    def finish(self) -> None:
        """Read what is left, as nothing more will come; for the rest as `read_on`."""
        self.read_on()
        self._take(self._events.rest())

    def tell(self, text: str) -> None:
        """Tell the listener what comes next in the text."""
        if text and self._listener is not None:
            self._listener.tell(well_formed(text))

    def _take(self, events: Sequence[bytes]) -> None:
        if self._failure:
            raise self._failure
        texts = []
        try:
            for data in events:
                if self.has_ended or data == _LAST_EVENT:
                    self.has_ended = True
                    break
                texts.append(self._read(data))
        except Exception as error:
            self._failure = error
            raise
        finally:
            self.tell("".join(texts))

    def _catch_up(self) -> None:
        # A failure is the call's, with what comes next or at its end, and no trouble of whoever arrives.
        with suppress(Exception):
            self.read_on()


class Events:
    """Takes a stream's bytes and gives the data of each Server-Sent Event.

    Comments and other fields are passed over.
    """

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self._line = bytearray()
        """What there is of the last line."""

    def feed(self, chunk: bytes | bytearray) -> Sequence[bytes]:
        """The data of the events that are whole with this chunk."""
        self._line += chunk
        if b"\n" not in chunk:
            return ()
        *lines, rest = bytes(self._line).split(b"\n")
        self._line = bytearray(rest)
        events: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                if field := line[len(b"data:") :].strip():
                    self._data.append(field)
            elif self._data and not line.rstrip(b"\r"):
                events += self.rest()
        return events

    def rest(self) -> Sequence[bytes]:
        """The last event, without its blank line, which not every endpoint sends; half a line never is."""
        events = [b"\n".join(self._data)] if self._data else []
        self._data.clear()
        return events


class Speech:
    """What a model says: an answer's text as it comes, without the thoughts that some put in front of it."""

    def __init__(self) -> None:
        self._stage: Literal["opening", "thinking", "after thinking", "speaking"] = "opening"
        self._held = ""
        """What may be a tag's beginning."""
        self._said_characters = 0
        self.blank_run = 0
        """How many characters of white space the text ends in so far."""

    def add(self, piece: str) -> str:
        """Take in what the model has written next; give what is said by it."""
        written = piece.rstrip()
        self.blank_run = len(piece) - len(written) + (0 if written else self.blank_run)
        match self._stage:
            case "opening":
                said = self._open(self._held + piece)
            case "thinking":
                said = self._think(self._held + piece)
            case "after thinking":
                said = self._conclude(piece)
            case "speaking":
                said = piece
        self._said_characters += len(said)
        return said

    def rest(self, text: str) -> str:
        """Whatever of the whole text has not been given yet."""
        return text[self._said_characters :]

    def _open(self, text: str) -> str:
        begun = text.lstrip()
        if begun.startswith(_OPENING):
            self._stage = "thinking"
            return self._think(begun)
        if _OPENING.startswith(begun):
            self._held = text
            return ""
        self._stage = "speaking"
        return text

    def _think(self, text: str) -> str:
        _, closing, after = text.partition(_CLOSING)
        if closing:
            self._stage = "after thinking"
            return self._conclude(after)
        self._held = text[-len(_CLOSING) :]
        return ""

    def _conclude(self, text: str) -> str:
        if text := text.lstrip():
            self._stage = "speaking"
        return text
