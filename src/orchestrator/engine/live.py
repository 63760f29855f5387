"""The text of calls under way, for whoever watches: kept while its call is open, never in the log.

A reader holds no buffer. It remembers how much of each text it has given, is woken without data, and reads on
from there; one that comes late reads from the beginning. Until it is read a text is left in the pieces in
which it came.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.log.subscription import CaughtUp, Step
from orchestrator.models.base import OnText
from orchestrator.v1.orchestrator_pb2 import OutputDelta

_LARGEST_DELTA_CHARACTERS: Final = 64 * 1024


@dataclass(eq=False, slots=True)
class _Text:
    """What one attempt has written so far."""

    subtask_id: str
    attempt: int
    pieces: list[str] = field(default_factory=list)
    is_whole: bool = False
    """Whether nothing will be added."""

    def after(self, place: "_Place") -> Sequence[OutputDelta]:
        """What a reader has not been given yet; its place moves on."""
        text = "".join(self.pieces[place.piece :])
        deltas = [
            OutputDelta(
                subtask_id=self.subtask_id,
                attempt=self.attempt,
                offset=place.offset + start,
                text=text[start : start + _LARGEST_DELTA_CHARACTERS],
            )
            for start in range(0, len(text), _LARGEST_DELTA_CHARACTERS)
        ]
        place.piece = len(self.pieces)
        place.offset += len(text)
        return deltas


@dataclass(slots=True)
class _Place:
    piece: int = 0
    offset: int = 0


class TextReader:
    """One subscriber's way through an instance's texts."""

    def __init__(self, texts: list[_Text]) -> None:
        self.woken = asyncio.Event()
        """Set whenever there may be something new."""
        self._places = {text: _Place() for text in texts}

    def begin(self, text: _Text) -> None:
        """Another call writes."""
        self._places[text] = _Place()

    def read(self) -> Sequence[OutputDelta]:
        """Everything written since the last time, in order within each attempt."""
        self.woken.clear()
        deltas = [delta for text, place in self._places.items() for delta in text.after(place)]
        for text in [text for text in self._places if text.is_whole]:
            del self._places[text]
        return deltas


@dataclass(slots=True)
class _Instance:
    texts: list[_Text] = field(default_factory=list)
    readers: set[TextReader] = field(default_factory=set)


class LiveTexts:
    """The texts of all instances that are watched or call models."""

    def __init__(self) -> None:
        self._instances: dict[str, _Instance] = {}

    @contextmanager
    def reading(self, instance_id: str) -> Iterator[TextReader]:
        """Watch an instance while the block runs."""
        instance = self._instances.setdefault(instance_id, _Instance())
        reader = TextReader(instance.texts)
        instance.readers.add(reader)
        try:
            yield reader
        finally:
            instance.readers.discard(reader)
            self._forget(instance_id)

    def is_watched(self, instance_id: str) -> bool:
        """Whether an instance has readers now."""
        instance = self._instances.get(instance_id)
        return instance is not None and bool(instance.readers)

    @contextmanager
    def writing(self, instance_id: str, subtask_id: str, attempt: int) -> Iterator[OnText]:
        """Give what takes a call's text while the block runs."""
        instance = self._instances.setdefault(instance_id, _Instance())
        text = _Text(subtask_id, attempt)
        instance.texts.append(text)
        for reader in instance.readers:
            reader.begin(text)

        def write(piece: str) -> None:
            text.pieces.append(piece)
            for reader in instance.readers:
                reader.woken.set()

        try:
            yield write
        finally:
            text.is_whole = True
            instance.texts.remove(text)
            self._forget(instance_id)

    def _forget(self, instance_id: str) -> None:
        instance = self._instances.get(instance_id)
        if instance and not instance.readers and not instance.texts:
            del self._instances[instance_id]


@dataclass(frozen=True, slots=True)
class Written:
    """What calls under way have written since the last time."""

    deltas: Sequence[OutputDelta]


async def interleaved(steps: AsyncIterator[Step], reader: TextReader) -> AsyncIterator[Step | Written]:
    """A subscription's steps and, once it has caught up, what is written between them.

    Text comes before the event that ends it.
    """
    step = asyncio.create_task(_next(steps))
    woken = asyncio.create_task(reader.woken.wait())
    has_caught_up = False
    try:
        while True:
            waits: set[asyncio.Task[Any]] = {step, woken} if has_caught_up else {step}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if has_caught_up and (deltas := reader.read()):
                yield Written(deltas)
            if woken.done():
                woken = asyncio.create_task(reader.woken.wait())
            if step.done():
                if (found := step.result()) is None:
                    return
                yield found
                if isinstance(found, CaughtUp):
                    has_caught_up = True
                    reader.woken.set()
                step = asyncio.create_task(_next(steps))
    finally:
        for task in (step, woken):
            task.cancel()
        await asyncio.wait((step, woken))


async def _next(steps: AsyncIterator[Step]) -> Step | None:
    return await anext(steps, None)
