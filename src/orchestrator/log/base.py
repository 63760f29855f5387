"""What an event log is: events in order, appended durably, read in pages, watched without a buffer."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol

from orchestrator.core.instance import Instance, State
from orchestrator.core.view import excerpt
from orchestrator.errors import UnavailableError
from orchestrator.log.framing import delimited, fields, tag
from orchestrator.v1.event_pb2 import Event
from orchestrator.v1.orchestrator_pb2 import EventBatch

PAGE_EVENTS: Final = 256
"""The most events a page holds, unless asked for fewer."""
PAGE_BYTES: Final = 1024 * 1024
"""A page ends early once it is this large: gRPC clients take messages of 4 MiB unless told otherwise."""


class Entry(NamedTuple):
    """Events of one instance that are appended together, and the instance as it is after them."""

    events: Sequence[Event]
    instance: Instance


@dataclass(frozen=True, slots=True)
class Page:
    """Events in order, as stored.

    `data` is a serialised EventBatch: events of the wire's batch are length-prefixed, so a page is the
    concatenation of its rows and needs no decoding. `ordinals` are the events' sequences (of all instances:
    their positions). `at_end` tells that nothing lay behind the page when it was read; `state` is the
    instance's state at that moment (of all instances: unspecified). `key` is the instance's own in the log,
    never given twice: another one under the same id means that the first was deleted (of all instances: 0).
    """

    data: bytes
    ordinals: Sequence[int]
    at_end: bool
    state: State
    key: int = 0

    def events(self) -> Sequence[Event]:
        """Decode the events."""
        return EventBatch.FromString(self.data).events

    def parts(self, max_bytes: int) -> "Iterator[tuple[bytes, Sequence[int]]]":
        """Divide `data` and `ordinals` so that no part's data has more bytes: as few parts as possible.

        A page that fits is not decoded. An event that does not fit by itself comes with its texts cut.
        """
        if len(self.data) <= max_bytes:
            yield self.data, self.ordinals
            return
        rows: list[bytes] = []
        size = start = 0
        for end, row in enumerate(map(partial(_within, max_bytes), fields(self.data))):
            if rows and size + len(row) > max_bytes:
                yield b"".join(rows), self.ordinals[start:end]
                rows, size, start = [], 0, end
            rows.append(row)
            size += len(row)
        yield b"".join(rows), self.ordinals[start:]


class EventLog(Protocol):
    """The truth. Sequences are dense per instance from 1; positions grow in commit order over all of them."""

    @property
    def wakeups(self) -> "Wakeups":
        """Tells readers that something was committed."""

    def append(self, entry: Entry) -> "asyncio.Future[None]":
        """Queue an entry; the future is done once it is durable.

        Entries become durable in the order they were queued. An entry whose first event has sequence 1
        creates the instance; its future fails with AlreadyExistsError (INSTANCE_ALREADY_EXISTS,
        REQUEST_ID_REUSED), or with DuplicateRequest where the same request has made an instance already.
        Any other entry is about the instance that was durable when it was queued; where that one has been
        deleted since, it fails with InstanceNotFoundError, though another may have the same id. While the
        storage takes no writes, creations fail with UnavailableError (STORAGE_READ_ONLY) and other entries
        wait until it does.
        """

    def append_atomic(self, entries: Sequence[Entry]) -> "Sequence[asyncio.Future[None]]":
        """Queue entries that each create an instance and become durable all at once or not at all.

        Where one fails with AlreadyExistsError all do, and nothing is written; DuplicateRequest concerns its
        own entry only.
        """

    async def check_new(self, instance: Instance) -> None:
        """Raise what creating this instance would fail with now: AlreadyExistsError, DuplicateRequest."""

    async def delete(self, instance_id: str) -> None:
        """Remove a finished instance and its events; its positions and its key are never given again.

        Raise InstanceNotFoundError, StateForbidsError while it is not finished, and UnavailableError.
        """

    def check_writable(self) -> None:
        """Raise UnavailableError (STORAGE_READ_ONLY) while the storage takes no writes."""

    async def load(self, instance_id: str) -> Instance:
        """Fold an instance from its durable events; raise InstanceNotFoundError."""

    async def read(self, instance_id: str, after: int, limit: int = PAGE_EVENTS) -> Page:
        """Read events with a sequence over `after`; raise InstanceNotFoundError."""

    async def read_all(
        self, after: int, limit: int = PAGE_EVENTS, *, labels: Sequence[tuple[str, str]] = ()
    ) -> Page:
        """Read events with a position over `after`, of all instances that have all of `labels`."""

    async def last_sequence(self, instance_id: str) -> int:
        """The sequence of an instance's last event; raise InstanceNotFoundError."""

    async def last_position(self) -> int:
        """The position of the last event of all; 0: there is none."""

    async def find(
        self,
        *,
        states: Sequence[State] = (),
        labels: Sequence[tuple[str, str]] = (),
        id_prefix: str = "",
        before: int = 0,
        limit: int,
    ) -> Sequence[tuple[int, str]]:
        """Find instances, newest first: `(key, id)` with a key under `before` (0: from the newest).

        Keys grow in the order of creation. An instance matches when it is in one of `states` (empty: any),
        has all of `labels`, and its id begins with `id_prefix`.
        """

    async def unfinished(self) -> Sequence[str]:
        """Ids of all instances in no terminal state, oldest first."""

    async def finished_before(self, time_s: float, limit: int) -> Sequence[str]:
        """Ids of instances that finished before a time, in seconds since the epoch, the earliest first."""

    async def aclose(self) -> None:
        """Write what is queued, then let go of the storage."""


class DuplicateRequest(Exception):  # noqa: N818  an answer rather than an error
    """The request was made before; `instance_id` is the instance it made."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(instance_id)
        self.instance_id = instance_id


class Wakeups:
    """Tells readers that there is something new, not what: whoever wakes up reads the log.

    A wake-up carries no data, so nothing is lost when several fall together and a slow reader costs nothing.
    """

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._closed = False

    def check_open(self) -> None:
        """Raise UnavailableError (SHUTTING_DOWN) once the service stops: readers are to come back later."""
        if self._closed:
            raise UnavailableError(
                "SHUTTING_DOWN", "the service is stopping: resume with the last sequence seen"
            )

    def close(self) -> None:
        """Send every reader away."""
        self._closed = True
        for watchers in self._watchers.values():
            for woken in watchers:
                woken.set()

    def watch(self, instance_id: str = "") -> AbstractContextManager[asyncio.Event]:
        """Watch one instance, or all of them: the event is set whenever something was committed."""
        return self._watch(instance_id)

    @contextmanager
    def _watch(self, instance_id: str) -> Iterator[asyncio.Event]:
        woken = asyncio.Event()
        watchers = self._watchers.setdefault(instance_id, set())
        watchers.add(woken)
        try:
            yield woken
        finally:
            watchers.discard(woken)
            if not watchers:
                self._watchers.pop(instance_id, None)

    def wake(self, instance_ids: Sequence[str]) -> None:
        """Wake the watchers of these instances, and those of all."""
        for instance_id in ("", *instance_ids) if self._watchers else ():
            for woken in self._watchers.get(instance_id, ()):
                woken.set()


def framed(event: Event) -> bytes:
    """Serialise an event as an EventBatch that holds only it."""
    return delimited(_EVENTS_TAG, event.SerializeToString())


def _within(max_bytes: int, row: bytes) -> bytes:
    """A row of a page as it is, or with the event's texts cut so that it has no more bytes."""
    if len(row) <= max_bytes:
        return row
    (event,) = EventBatch.FromString(row).events
    return framed(excerpt(event, max_bytes - _PREFIX_BYTES))


_EVENTS_TAG: Final = tag(EventBatch, "events")
_PREFIX_BYTES: Final = 6
"""The most that the tag and the size of an event take."""
