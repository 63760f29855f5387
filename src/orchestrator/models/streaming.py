"""How an answer is read while it is still being written."""

from collections.abc import AsyncIterator
from typing import Final, Literal

from orchestrator.core.plan import well_formed
from orchestrator.models.base import OnText

_OPENING: Final = "<think>"
_CLOSING: Final = "</think>"


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each Server-Sent Event; comments and other fields are passed over.

    The last event is given without its blank line too, which not every endpoint sends; half a line never is.
    """
    data: list[bytes] = []
    rest = bytearray()
    async for chunk in chunks:
        rest += chunk
        if b"\n" not in chunk:
            continue
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if field := _data(line):
                data.append(field)
            elif data and not line.rstrip(b"\r"):
                yield b"\n".join(data)
                data.clear()
    if data:
        yield b"\n".join(data)


def _data(line: bytearray) -> bytes:
    """What a `data:` line holds; empty: it is another one, or holds nothing."""
    return bytes(line[len(b"data:") :].strip()) if line.startswith(b"data:") else b""


class LiveText:
    """Passes an answer's text on as it comes, without the thoughts that some models put in front of it."""

    def __init__(self, on_text: OnText) -> None:
        self._on_text = on_text
        self._stage: Literal["opening", "thinking", "after thinking", "speaking"] = "opening"
        self._held = ""
        """What may be a tag's beginning."""
        self._told_characters = 0
        self.blank_run = 0
        """How many characters of white space the text ends in so far."""

    def add(self, piece: str) -> None:
        """Take in what the model has written next."""
        written = piece.rstrip()
        self.blank_run = len(piece) - len(written) + (0 if written else self.blank_run)
        match self._stage:
            case "opening":
                self._open(self._held + piece)
            case "thinking":
                self._think(self._held + piece)
            case "after thinking":
                self._conclude(piece)
            case "speaking":
                self._tell(piece)

    def finish(self, text: str) -> None:
        """Pass on whatever of the whole text has not been told yet."""
        self._tell(text[self._told_characters :])

    def _open(self, text: str) -> None:
        begun = text.lstrip()
        if begun.startswith(_OPENING):
            self._stage = "thinking"
            self._think(begun)
        elif _OPENING.startswith(begun):
            self._held = text
        else:
            self._stage = "speaking"
            self._tell(text)

    def _think(self, text: str) -> None:
        _, closing, after = text.partition(_CLOSING)
        if closing:
            self._stage = "after thinking"
            self._conclude(after)
        else:
            self._held = text[-len(_CLOSING) :]

    def _conclude(self, text: str) -> None:
        if text := text.lstrip():
            self._stage = "speaking"
            self._tell(text)

    def _tell(self, piece: str) -> None:
        if piece:
            self._told_characters += len(piece)
            self._on_text(well_formed(piece))
