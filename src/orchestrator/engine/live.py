"""The text of calls under way, for whoever watches: kept while its call is open, never in the log.

A reader holds no buffer. It remembers how much of each text it has given, is woken without data, and reads on
from there; one that comes late reads from the beginning. Until it is read a text is left in the pieces in
which it came.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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

    def after(self, cursor: "_Cursor") -> Sequence[OutputDelta]:
        """What a reader has not been given yet; this moves its cursor on."""
        text = "".join(self.pieces[cursor.piece :])
        deltas = [
            OutputDelta(
                subtask_id=self.subtask_id,
                attempt=self.attempt,
                offset=cursor.offset + start,
                text=text[start : start + _LARGEST_DELTA_CHARACTERS],
            )
            for start in range(0, len(text), _LARGEST_DELTA_CHARACTERS)
        ]
        cursor.piece = len(self.pieces)
        cursor.offset += len(text)
        return deltas


@dataclass(slots=True)
class _Cursor:
    piece: int = 0
    offset: int = 0


class TextReader:
    """One subscriber's way through an instance's texts."""

    def __init__(self, texts: list[_Text]) -> None:
        self.woken = asyncio.Event()
        """Set whenever there may be something new."""
        self._cursors = {text: _Cursor() for text in texts}

    def begin(self, text: _Text) -> None:
        """Another call writes."""
        self._cursors[text] = _Cursor()

    def read(self) -> Sequence[OutputDelta]:
        """Everything written since the last time, in order within each attempt."""
        self.woken.clear()
        deltas = [delta for text, cursor in self._cursors.items() for delta in text.after(cursor)]
        for text in [text for text in self._cursors if text.is_whole]:
            del self._cursors[text]
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
    def subscribe(self, instance_id: str) -> Iterator[TextReader]:
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

    def writer(self, instance_id: str, subtask_id: str, attempt: int) -> AbstractContextManager[OnText]:
        """Give what takes a call's text while the block runs."""
        return _TextWriter(self, instance_id, subtask_id, attempt)

    def begin(self, instance_id: str, text: _Text) -> None:
        """Another call writes."""
        instance = self._instances.setdefault(instance_id, _Instance())
        instance.texts.append(text)
        for reader in instance.readers:
            reader.begin(text)

    def wake(self, instance_id: str) -> None:
        """Tell an instance's readers that there is more."""
        for reader in self._instances[instance_id].readers:
            reader.woken.set()

    def end(self, instance_id: str, text: _Text) -> None:
        """Nothing will be added to a text: it is kept for those only who were reading it."""
        text.is_whole = True
        self._instances[instance_id].texts.remove(text)
        self._forget(instance_id)

    def _forget(self, instance_id: str) -> None:
        instance = self._instances.get(instance_id)
        if instance and not instance.readers and not instance.texts:
            del self._instances[instance_id]


@dataclass(slots=True)
class _TextWriter:
    """One call, which takes room here only once it writes something."""

    live: LiveTexts
    instance_id: str
    subtask_id: str
    attempt: int
    text: _Text | None = None

    def __enter__(self) -> OnText:
        return self._write

    def __exit__(self, *_: object) -> None:
        if self.text:
            self.live.end(self.instance_id, self.text)

    def _write(self, piece: str, *, is_anew: bool = False) -> None:
        if is_anew and self.text is not None:
            self.live.end(self.instance_id, self.text)
            self.text = None
        if self.text is None:
            self.text = _Text(self.subtask_id, self.attempt)
            self.live.begin(self.instance_id, self.text)
        self.text.pieces.append(piece)
        self.live.wake(self.instance_id)


@dataclass(frozen=True, slots=True)
class LiveText:
    """What calls under way have written since the last time."""

    deltas: Sequence[OutputDelta]


async def merge_live_text(steps: AsyncIterator[Step], reader: TextReader) -> AsyncIterator[Step | LiveText]:
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
                yield LiveText(deltas)
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
