"""How an answer is read while it is still being written."""

from collections.abc import Sequence
from typing import Final, Literal

_LAST_EVENT: Final = b"[DONE]"
_OPENING: Final = "<think>"
_CLOSING: Final = "</think>"


class Events:
    """Takes a stream's bytes and gives the data of each Server-Sent Event.

    Comments and other fields are passed over.
    """

    def __init__(self) -> None:
        self.have_ended = False
        """Whether the event has come after which none follows: not every endpoint closes the stream then."""
        self._data: list[bytes] = []
        self._line = bytearray()
        """What there is of the last line."""

    def feed(self, chunk: bytes) -> Sequence[bytes]:
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
        data, self._data = b"\n".join(self._data), []
        self.have_ended |= data == _LAST_EVENT
        return [data] if data and not self.have_ended else []


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
