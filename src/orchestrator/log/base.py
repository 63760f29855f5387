"""What an event log is: events in order, appended durably, read in pages, watched without a buffer."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final, NamedTuple, Protocol, TypeVar

from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.instance import Instance, State
from orchestrator.core.summary import Summary
from orchestrator.core.view import excerpt
from orchestrator.errors import StorageError, UnavailableError
from orchestrator.log.framing import encode_field, split_fields, tag
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event
from orchestrator.v1.orchestrator_pb2 import EventBatch

T = TypeVar("T")

PAGE_EVENTS: Final = 256
"""The most events a page holds, unless asked for fewer."""
PAGE_BYTES: Final = 1024 * 1024
"""A page ends early once it is this large: gRPC clients accept messages of 4 MiB by default."""


class Creation(NamedTuple):
    """A new instance: its first events, and the state after them."""

    key: InstanceKey
    events: Sequence[Event]
    instance: Instance

    @property
    def is_dense(self) -> bool:
        """Whether the events are all that the state was folded from, without a gap."""
        return len(self.events) == self.instance.last_sequence and _is_dense(self.events, after=0)


class Created(NamedTuple):
    """The creation is durable."""

    ref: InstanceRef


class Duplicate(NamedTuple):
    """The same request has created an instance before; nothing was written."""

    ref: InstanceRef


class Append(NamedTuple):
    """Events that go on from where their writer saw the instance."""

    ref: InstanceRef
    expected_sequence: int
    """The last sequence that the writer knows. The events' own follow it without a gap."""
    events: Sequence[Event]
    summary: Summary
    """Of the instance after the events."""
    epoch: int | None = None
    """Of the writer's lease on the instance; None: it has none, as in steering."""
    waits_for_storage: bool = False
    """Whether it stays queued while the storage takes no writes, instead of failing."""
    previous: "asyncio.Future[None] | None" = None
    """The append of the same writer that it goes on from, where that one is not known to be durable: should
    it fail, this one fails too. The sequence alone does not tell, for another writer may have used it."""

    @property
    def is_dense(self) -> bool:
        """Whether there are events, and they follow the expected sequence without a gap."""
        return _is_dense(self.events, after=self.expected_sequence)

    @property
    def has_failed_predecessor(self) -> bool:
        """Whether the append that this one follows failed, or its outcome is unknown."""
        previous = self.previous
        return previous is not None and (
            previous.cancelled() or (previous.done() and previous.exception() is not None)
        )


class Head(NamedTuple):
    """Where an instance stands in the log."""

    ref: InstanceRef
    state: State
    last_sequence: int


class Query(NamedTuple):
    """Which instances to list, newest first: those that have all that is given."""

    tenant: str | None = None
    """None: of every tenant."""
    states: Sequence[State] = ()
    labels: Sequence[tuple[str, str]] = ()
    id_prefix: str = ""
    before: int = 0
    """Only incarnations under this one; 0: from the newest."""
    limit: int = 50


class Row(NamedTuple):
    """One instance of a list."""

    head: Head
    view: bytes
    """See Summary.view: empty while the instance is at work."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """Instances, newest first."""

    rows: Sequence[Row]
    before: int
    """Where the next page goes on, matched or not; 0: there is none."""


@dataclass(frozen=True, slots=True)
class Page:
    """Events of one instance in order, as stored.

    `data` is a serialised EventBatch: events of the wire's batch are length-prefixed, so a page is the
    concatenation of its rows and needs no decoding. `ordinals` are the events' sequences (of all instances:
    their positions). `at_end` says that nothing lay behind the page when it was read; `state` is the
    instance's state at that moment (of all instances: unspecified).
    """

    data: bytes
    ordinals: Sequence[int]
    at_end: bool
    state: State = pb.STATE_UNSPECIFIED

    def events(self) -> Sequence[Event]:
        """Decode the events."""
        return EventBatch.FromString(self.data).events

    def split(self, max_bytes: int) -> "Iterator[tuple[bytes, Sequence[int]]]":
        """Divide `data` and `ordinals` so that no part's data has more bytes: as few parts as possible.

        A page that fits is not decoded. An event that does not fit by itself comes with its texts cut.
        """
        if len(self.data) <= max_bytes:
            yield self.data, self.ordinals
            return
        rows: list[bytes] = []
        size = start = 0
        for end, row in enumerate(map(partial(_fit_row, max_bytes), split_fields(self.data))):
            if rows and size + len(row) > max_bytes:
                yield b"".join(rows), self.ordinals[start:end]
                rows, size, start = [], 0, end
            rows.append(row)
            size += len(row)
        yield b"".join(rows), self.ordinals[start:]


class Deletion(NamedTuple):
    """A tombstone: the instance and its events are gone. It has a position of its own."""

    ref: InstanceRef
    position: int


@dataclass(frozen=True, slots=True)
class GlobalPage:
    """What happened to all instances, in commit order: events, then the deletions that follow them."""

    events: Page
    deletions: Sequence[Deletion]
    cursor: int
    """Everything up to this position was looked at, whether it matched or not."""


class EventLog(Protocol):
    """The truth. Sequences are dense per instance from 1; positions grow in commit order over all of them.

    Any number of writers may append to one instance. Each says which event it saw last; where another was
    faster it fails with SequenceConflictError, reads what happened, and decides again.
    """

    @property
    def notifier(self) -> "CommitNotifier":
        """Wakes readers when something was committed."""

    def create(self, batch: Sequence[Creation]) -> "asyncio.Future[Sequence[Created | Duplicate]]":
        """Queue creations that become durable all at once or not at all; one outcome for each.

        The future fails with AlreadyExistsError (INSTANCE_ALREADY_EXISTS, REQUEST_ID_REUSED) where one of
        them cannot be, with StorageError where an instance's events leave a gap, and with UnavailableError
        (STORAGE_READ_ONLY) while the storage takes no writes: then nothing is written, and never will be.
        Where the log ends while they are written it fails with UnavailableError (COMMIT_UNKNOWN). Creations
        and appends become durable in the order they are queued.
        """

    async def check_creation(self, creation: Creation) -> Duplicate | None:
        """Give the instance that the same request has created; raise AlreadyExistsError as `create` would."""

    def append(self, append: Append) -> "asyncio.Future[None]":
        """Queue events; the future is done once they are durable.

        It fails with SequenceConflictError where the instance's last event is not the expected one, with
        FencedError where a newer lease than `epoch` was acquired, with InstanceNotFoundError where that
        incarnation is deleted, with StorageError where the events leave a gap, and with UnavailableError
        (STORAGE_READ_ONLY). Then nothing is written of it, nor of those that follow it.
        """

    async def acquire_lease(self, ref: InstanceRef) -> int:
        """Begin a new epoch and give its number: appends of older epochs fail from now on.

        Raise InstanceNotFoundError, UnavailableError.
        """

    async def delete(self, ref: InstanceRef) -> None:
        """Remove a finished instance and its events, and leave a tombstone in the global stream.

        Positions and incarnations are never given again. Raise InstanceNotFoundError, StateForbidsError while
        it is not finished, and UnavailableError.
        """

    async def store_catalogue(self, digest: str, data: bytes) -> None:
        """Keep a catalogue of workers for good, where it is not kept yet; see core/workers.py.

        It is durable before an event can name it. Raise UnavailableError.
        """

    async def catalogue(self, digest: str) -> bytes:
        """Give the catalogue of that digest; raise StorageError where there is none."""

    def answer(self, durable: "asyncio.Future[T]") -> "asyncio.Future[T]":
        """Give what a client waits for that is told the outcome of `create` or `append`, once for each.

        It has that outcome, unless the storage takes longer than clients wait: then it fails with
        UnavailableError (COMMIT_UNKNOWN), and only `durable` tells the outcome, whenever that is known. To
        cancel it changes nothing of what is written.
        """

    @property
    def obstacle(self) -> str:
        """Why the storage takes no writes, and what a person does about it; empty: it does take them."""

    def watch_storage(self, on_change: Callable[[str], None]) -> None:
        """Call the one listener with `obstacle` now, and whenever that changes."""

    async def head(self, key: InstanceKey) -> Head:
        """Find the current incarnation of a key; raise InstanceNotFoundError."""

    async def find(self, instance_id: str) -> "Sequence[Head]":
        """Find the current incarnations that go by an id, one of each tenant that has one, by tenants."""

    async def read(self, ref: InstanceRef, after: int, limit: int = PAGE_EVENTS) -> Page:
        """Read events with a sequence over `after`; raise InstanceNotFoundError once it is deleted."""

    async def read_all(
        self,
        after: int,
        limit: int = PAGE_EVENTS,
        *,
        tenant: str | None = None,
        labels: Sequence[tuple[str, str]] = (),
    ) -> GlobalPage:
        """Read what has a position over `after`, in the order of positions.

        Of all instances of a tenant (None: of every one) that have all of `labels`. A read looks at a bounded
        number of positions. A page without events whose `events.at_end` is false means that none of those
        matched: go on from its cursor.
        """

    async def last_position(self) -> int:
        """Return the position of the last event or deletion of all; 0: there is none."""

    async def list(self, query: Query) -> ListPage:
        """List instances, newest first; a page may be short, or empty, though more follow."""

    async def unfinished(self) -> "Sequence[Head]":
        """Return all instances in no terminal state, oldest first."""

    async def count_by_state(self) -> "Mapping[State, int]":
        """Count all instances by their states; what no instance is in may be left out."""

    def size_bytes(self) -> int:
        """Return how much room the log takes."""

    @property
    def is_writable(self) -> bool:
        """Whether the storage takes writes, as far as is known."""

    async def finished_before(self, time_s: float, limit: int) -> "Sequence[InstanceRef]":
        """Instances that finished before a time, in seconds since the epoch, the earliest first."""

    async def aclose(self) -> None:
        """Write what is queued, then release the storage."""


class SequenceConflictError(Exception):
    """Another writer was faster."""

    def __init__(self, last_sequence: int) -> None:
        super().__init__(f"the last event is {last_sequence}")
        self.last_sequence = last_sequence


def gap(instance_id: str) -> StorageError:
    """Say that a writer's events are not dense."""
    return StorageError(f"events for instance {instance_id!r} leave a gap")


def no_catalogue(digest: str) -> StorageError:
    """Build the error of a catalogue that an event names and that is not in the log."""
    return StorageError(f"the event log has no catalogue of workers {digest}, which an event of it names")


class FencedError(Exception):
    """Another writer holds the lease now: this one must not go on."""


class _WakeUp(asyncio.Event):
    """What a reader waits for; it knows since when the reader has not looked."""

    def __init__(self) -> None:
        super().__init__()
        self.set_s = 0.0

    def set(self) -> None:
        """Wake the reader."""
        if not self.is_set():
            self.set_s = time.monotonic()
            super().set()


class CommitNotifier:
    """Wakes readers after each commit; what was committed they read in the log.

    A wake-up carries no data, so nothing is lost when several fall together and a slow reader costs nothing.
    """

    def __init__(self) -> None:
        self._watchers: dict[int, set[_WakeUp]] = {}
        """By incarnation; 0: of all instances."""
        self._closed = False
        self.commits = 0
        """How many commits there were: what is read between two of them is the same for all readers."""

    def check_open(self) -> None:
        """Raise UnavailableError (SHUTTING_DOWN) once the service stops: readers are to come back later."""
        if self._closed:
            raise UnavailableError(
                "SHUTTING_DOWN", "the service is stopping: resume with the last sequence seen"
            )

    @property
    def readers_of_one(self) -> int:
        """How many readers watch one instance each."""
        return sum(map(len, self._watchers.values())) - self.readers_of_all

    @property
    def readers_of_all(self) -> int:
        """How many readers watch all instances."""
        return len(self._watchers.get(0, ()))

    def lag_s(self) -> float:
        """Return how long the slowest reader has not looked at what was committed for it."""
        woken = chain.from_iterable(self._watchers.values())
        since_s = [each.set_s for each in woken if each.is_set()]
        return time.monotonic() - min(since_s) if since_s else 0.0

    def close(self) -> None:
        """Wake every reader, so that `check_open` ends it."""
        self._closed = True
        for watchers in self._watchers.values():
            for woken in watchers:
                woken.set()

    def watch(self, ref: InstanceRef | None = None) -> AbstractContextManager[asyncio.Event]:
        """Watch one instance, or all of them: the event is set whenever something was committed."""
        return self._watch(ref.incarnation if ref else 0)

    @contextmanager
    def _watch(self, incarnation: int) -> Iterator[asyncio.Event]:
        woken = _WakeUp()
        watchers = self._watchers.setdefault(incarnation, set())
        watchers.add(woken)
        try:
            yield woken
        finally:
            watchers.discard(woken)
            if not watchers:
                self._watchers.pop(incarnation, None)

    def notify(self, refs: Iterable[InstanceRef]) -> None:
        """Wake the watchers of these instances, and those of all."""
        self.commits += 1
        if not self._watchers:
            return
        for incarnation in (0, *(ref.incarnation for ref in refs)):
            for woken in self._watchers.get(incarnation, ()):
                woken.set()


def encode_row(event: Event) -> bytes:
    """Serialise an event as an EventBatch that holds only it."""
    return encode_field(_EVENTS_TAG, event.SerializeToString())


def _is_dense(events: Sequence[Event], after: int) -> bool:
    for event in events:
        after += 1
        if event.sequence != after:
            return False
    return len(events) > 0


def _fit_row(max_bytes: int, row: bytes) -> bytes:
    """Return a row of a page as it is, or with the event's texts cut so that it has no more bytes."""
    if len(row) <= max_bytes:
        return row
    (event,) = EventBatch.FromString(row).events
    return encode_row(excerpt(event, max_bytes - _PREFIX_BYTES))


_EVENTS_TAG: Final = tag(EventBatch, "events")
_PREFIX_BYTES: Final = 6
"""The most that the tag and the size of an event take."""
