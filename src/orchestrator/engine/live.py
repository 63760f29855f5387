"""The text of attempts under way, for readers: kept until the attempt ends, never in the log.

A reader holds no buffer. It remembers how much of each text it has given, is woken without data, and reads on
from there; one that comes late reads from the beginning. Until it is read a text is left in the pieces in
which it came.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from orchestrator.core.identity import InstanceRef
from orchestrator.core.instance import WorkKey
from orchestrator.core.wire import attempt_ended_by
from orchestrator.engine.joined_text import JoinedTextCallback
from orchestrator.log.base import Page
from orchestrator.log.subscription import CaughtUp, Step
from orchestrator.v1.event_pb2 import Event
from orchestrator.v1.orchestrator_pb2 import OutputDelta

_LARGEST_DELTA_CHARACTERS: Final = 64 * 1024
_STOPS: Final = frozenset({"instance_errored", "instance_terminated"})
"""Events that end every attempt."""


class Attempt(NamedTuple):
    """Whose text it is."""

    work: WorkKey
    number: int
    sequence: int
    """That of the event with which the attempt began: a later plan's attempts are numbered from 1 again."""


@dataclass(eq=False, slots=True)
class _Text:
    """What one attempt has written so far."""

    attempt: Attempt
    pieces: list[str] = field(default_factory=list)
    is_whole: bool = False
    """Whether nothing will be added."""

    def after(self, cursor: "_Cursor") -> Sequence[OutputDelta]:
        """Return what a reader has not been given yet, and move its cursor on."""
        text = "".join(self.pieces[cursor.piece :])
        deltas = [
            OutputDelta(
                subtask_id=self.attempt.work.subtask_id,
                attempt=self.attempt.number,
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

    def __init__(self, texts: Iterable[_Text]) -> None:
        self.woken = asyncio.Event()
        """Set whenever there may be something new."""
        self._cursors = {text: _Cursor() for text in texts}
        self._ends: dict[tuple[WorkKey, int], int] = {}
        """The sequence of the last event that the subscriber was given of the end of each attempt."""
        self._stop = 0
        """The sequence of the last one that ended them all."""

    def begin(self, text: _Text, *, after: int = 0) -> None:
        """Read another text too; its first pieces, `after` of them, were in the one that it replaces."""
        self._cursors[text] = _Cursor(after, sum(map(len, text.pieces[:after])))

    def read(self) -> Sequence[OutputDelta]:
        """Return everything written since the last time, in order within each attempt."""
        self.woken.clear()
        self._forget([text for text in self._cursors if self._has_ended(text.attempt)])
        deltas = [delta for text, cursor in self._cursors.items() for delta in text.after(cursor)]
        self._forget([text for text in self._cursors if text.is_whole])
        return deltas

    def note(self, events: Iterable[Event]) -> None:
        """Read no more of the attempts that these events end, which the subscriber is given now."""
        for event in events:
            if event.WhichOneof("payload") in _STOPS:
                self._stop = event.sequence
            elif ended := attempt_ended_by(event):
                self._ends[ended] = event.sequence

    def _has_ended(self, attempt: Attempt) -> bool:
        end = self._ends.get((attempt.work, attempt.number), 0)
        return attempt.sequence < max(end, self._stop)

    def _forget(self, texts: Iterable[_Text]) -> None:
        for text in texts:
            del self._cursors[text]


@dataclass(slots=True)
class _Instance:
    texts: dict[Attempt, _Text] = field(default_factory=dict)
    readers: set[TextReader] = field(default_factory=set)


class LiveTexts:
    """The texts of all instances that are watched or call models."""

    def __init__(self) -> None:
        self._instances: dict[InstanceRef, _Instance] = {}

    @contextmanager
    def subscribe(self, ref: InstanceRef) -> Iterator[TextReader]:
        """Watch an instance while the block runs."""
        instance = self._instances.setdefault(ref, _Instance())
        reader = TextReader(instance.texts.values())
        instance.readers.add(reader)
        try:
            yield reader
        finally:
            instance.readers.discard(reader)
            self._forget(ref)

    def is_watched(self, ref: InstanceRef) -> bool:
        """Return whether an instance has readers now."""
        instance = self._instances.get(ref)
        return instance is not None and bool(instance.readers)

    def writer(self, ref: InstanceRef, attempt: Attempt, recorded: str = "") -> JoinedTextCallback:
        """Return what takes the text of an attempt's next call, behind what is recorded of the answer.

        It takes room only once there is text.
        """
        instance = self._instances.get(ref)
        text = instance.texts.get(attempt) if instance else None
        has_recorded = sum(map(len, text.pieces)) == len(recorded) if text else not recorded
        begins_with = len(text.pieces) if text and has_recorded else int(bool(recorded))

        def write(piece: str, *, is_restart: bool = False, replaces: bool = False) -> None:
            nonlocal has_recorded, begins_with
            if replaces:
                has_recorded, begins_with = True, 0
            if not has_recorded:  # an earlier attempt wrote it, or a call that was not streamed
                has_recorded = True
                self._write(ref, attempt, recorded, kept=0)
            self._write(ref, attempt, piece, kept=begins_with if is_restart or replaces else None)

        return write

    def end(self, ref: InstanceRef, attempt: Attempt) -> None:
        """End an attempt's text: it is kept for those only who were reading it."""
        instance = self._instances.get(ref)
        if instance and (text := instance.texts.pop(attempt, None)):
            text.is_whole = True
            self._forget(ref)

    def _write(self, ref: InstanceRef, attempt: Attempt, piece: str, *, kept: int | None) -> None:
        """Add a piece to an attempt's text, of which only so many pieces are `kept`; None: all."""
        instance = self._instances.setdefault(ref, _Instance())
        text = instance.texts.get(attempt)
        if text is None or kept is not None:
            kept = kept or 0
            if text:
                text.is_whole = True
            text = instance.texts[attempt] = _Text(attempt, text.pieces[:kept] if text else [])
            for reader in instance.readers:
                reader.begin(text, after=kept)
        text.pieces.append(piece)
        for reader in instance.readers:
            reader.woken.set()

    def _forget(self, ref: InstanceRef) -> None:
        instance = self._instances.get(ref)
        if instance and not instance.readers and not instance.texts:
            del self._instances[ref]


@dataclass(frozen=True, slots=True)
class LiveText:
    """What calls under way have written since the last time."""

    deltas: Sequence[OutputDelta]


async def merge_live_text(steps: AsyncIterator[Step], reader: TextReader) -> AsyncIterator[Step | LiveText]:
    """Yield a subscription's steps and, once it has caught up, what is written between them.

    Text comes before the event that ends its attempt, and none after it.
    """
    step = asyncio.create_task(_next(steps))
    woken = asyncio.create_task(reader.woken.wait())
    has_caught_up = False
    try:
        while True:
            waits: set[asyncio.Task[Any]] = {step, woken} if has_caught_up else {step}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            has_step = step.done()  # before the text is read: all that its events end has been written by now
            if has_caught_up and (deltas := reader.read()):
                yield LiveText(deltas)
            if woken.done():
                woken = asyncio.create_task(reader.woken.wait())
            if has_step:
                if (found := step.result()) is None:
                    return
                if isinstance(found, Page):
                    reader.note(found.events())
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
