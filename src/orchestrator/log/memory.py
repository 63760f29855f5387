"""An event log in memory, for tests and for trying things out: the promises of the log, less durability."""

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.instance import TERMINAL, Instance, State
from orchestrator.core.lifecycle import forbidden
from orchestrator.core.summary import Summary, summarize
from orchestrator.errors import AlreadyExistsError, InstanceNotFoundError, StorageError, UnavailableError
from orchestrator.log.base import (
    PAGE_BYTES,
    PAGE_EVENTS,
    Append,
    CommitNotifier,
    Created,
    Creation,
    Deletion,
    Duplicate,
    FencedError,
    GlobalPage,
    Head,
    ListPage,
    Page,
    Query,
    Row,
    SequenceConflictError,
    encode_row,
    gap,
    no_catalogue,
)
from orchestrator.log.conflict import check_duplicate

T = TypeVar("T")


@dataclass(slots=True)
class _StoredInstance:
    """What the log holds of one instance."""

    ref: InstanceRef
    first: Instance
    """As it was created: labels and request id never change."""
    summary: Summary
    epoch: int = 0
    events: list[bytes] = field(default_factory=list)

    @property
    def head(self) -> Head:
        return Head(self.ref, self.summary.state, len(self.events))


class MemoryEventLog:
    """Keeps everything in lists; what is queued is written, in order, when the loop comes round."""

    def __init__(self) -> None:
        self.notifier = CommitNotifier()
        self._by_incarnation: dict[int, _StoredInstance] = {}
        """By incarnation, in the order of creation."""
        self._by_key: dict[InstanceKey, _StoredInstance] = {}
        self._requests: dict[tuple[str, str], _StoredInstance] = {}
        """By tenant and request id."""
        self._positions: list[int] = []
        self._rows: list[tuple[_StoredInstance, bytes | None]] = []
        """What happened at each of `_positions`: an event, or None for a deletion."""
        self._position = 0
        self._incarnation = 0
        self._queue: list[Callable[[], None]] = []
        self._catalogues: dict[str, bytes] = {}
        """By digest."""
        self._closed = False

    def create(self, batch: Sequence[Creation]) -> "asyncio.Future[Sequence[Created | Duplicate]]":
        """Create all of them or none; see EventLog."""
        return self._enqueue(lambda: self._create(batch))

    def append(self, append: Append) -> "asyncio.Future[None]":
        """Append events; see EventLog."""
        return self._enqueue(lambda: self._append(append))

    def _enqueue(self, write: Callable[[], T]) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        written: asyncio.Future[T] = loop.create_future()
        if self._closed:
            written.set_exception(UnavailableError("SHUTTING_DOWN", "the service is stopping: call again"))
            written.exception()
            return written

        def settle() -> None:
            try:
                result = write()
            except Exception as error:  # noqa: BLE001  it belongs to the future
                if not written.done():
                    written.set_exception(error)
                    written.exception()
            else:
                if not written.done():
                    written.set_result(result)

        self._queue.append(settle)
        if len(self._queue) == 1:
            loop.call_soon(self._drain)
        return written

    def _drain(self) -> None:
        queued, self._queue = self._queue, []
        for settle in queued:
            settle()

    def _create(self, batch: Sequence[Creation]) -> Sequence[Created | Duplicate]:
        outcomes: list[Created | Duplicate] = []
        created: list[_StoredInstance] = []
        try:
            for creation in batch:
                if not creation.is_dense:
                    raise gap(creation.key.id)
                if duplicate := self._duplicate(creation):
                    outcomes.append(duplicate)
                    continue
                created.append(self._begin(creation))
                outcomes.append(Created(created[-1].ref))
        except (AlreadyExistsError, StorageError):
            for stored in created:
                self._remove(stored)
            self._incarnation -= len(created)
            raise
        for stored, creation in zip(created, _created_of(batch, outcomes), strict=True):
            self._write(stored, [encode_row(event) for event in creation.events])
        self.notifier.notify(stored.ref for stored in created)
        return outcomes

    def _duplicate(self, creation: Creation) -> Duplicate | None:
        wanted = creation.instance
        same_request = self._requests.get((creation.key.tenant, wanted.request_id))
        taken = same_request or self._by_key.get(creation.key)
        if taken is None:
            return None
        return check_duplicate(wanted, taken.ref, taken.first.request_id, taken.first.request_digest)

    def _begin(self, creation: Creation) -> _StoredInstance:
        self._incarnation += 1
        ref = InstanceRef(creation.key, self._incarnation)
        stored = _StoredInstance(ref, creation.instance, summarize(creation.instance))
        self._by_incarnation[ref.incarnation] = self._by_key[ref.key] = stored
        if stored.first.request_id:
            self._requests[ref.key.tenant, stored.first.request_id] = stored
        return stored

    def _write(self, stored: _StoredInstance, rows: Sequence[bytes | None]) -> None:
        for row in rows:
            self._position += 1
            self._positions.append(self._position)
            self._rows.append((stored, row))
            if row is not None:
                stored.events.append(row)

    def _append(self, append: Append) -> None:
        stored = self._find(append.ref)
        if append.epoch is not None and append.epoch < stored.epoch:
            raise FencedError
        if append.has_failed_predecessor or append.expected_sequence != len(stored.events):
            raise SequenceConflictError(len(stored.events))
        if not append.is_dense:
            raise gap(append.ref.id)
        self._write(stored, [encode_row(event) for event in append.events])
        stored.summary = append.summary
        self.notifier.notify((append.ref,))

    def _find(self, ref: InstanceRef) -> _StoredInstance:
        try:
            return self._by_incarnation[ref.incarnation]
        except KeyError:
            raise InstanceNotFoundError(ref.id) from None

    async def check_creation(self, creation: Creation) -> Duplicate | None:
        """Look for what has its key or request id; see EventLog."""
        return self._duplicate(creation)

    async def acquire_lease(self, ref: InstanceRef) -> int:
        """Begin a new epoch; see EventLog."""

        def acquire() -> int:
            stored = self._find(ref)
            stored.epoch += 1
            return stored.epoch

        return await self._enqueue(acquire)

    async def delete(self, ref: InstanceRef) -> None:
        """Remove a finished instance; see EventLog."""
        await self._enqueue(lambda: self._delete(ref))

    def _delete(self, ref: InstanceRef) -> None:
        stored = self._find(ref)
        if stored.summary.state not in TERMINAL:
            raise forbidden(ref.id, stored.summary.state, "delete")
        self._remove(stored)
        kept = [
            (position, row)
            for position, row in zip(self._positions, self._rows, strict=True)
            if row[0] is not stored
        ]
        self._positions = [position for position, _ in kept]
        self._rows = [row for _, row in kept]
        self._write(stored, [None])
        self.notifier.notify((ref,))

    def _remove(self, stored: _StoredInstance) -> None:
        del self._by_incarnation[stored.ref.incarnation], self._by_key[stored.ref.key]
        self._requests.pop((stored.ref.key.tenant, stored.first.request_id), None)

    async def store_catalogue(self, digest: str, data: bytes) -> None:
        """Keep a catalogue; see EventLog."""
        await self._enqueue(lambda: self._catalogues.setdefault(digest, data))

    async def catalogue(self, digest: str) -> bytes:
        """Give a catalogue; see EventLog."""
        try:
            return self._catalogues[digest]
        except KeyError:
            raise no_catalogue(digest) from None

    def answer(self, durable: "asyncio.Future[T]") -> "asyncio.Future[T]":
        """Give what a client waits for; see EventLog."""
        return asyncio.shield(durable)

    @property
    def obstacle(self) -> str:
        """Memory always takes writes; see EventLog."""
        return ""

    def watch_storage(self, on_change: Callable[[str], None]) -> None:
        """Notify a listener; see EventLog."""
        on_change("")

    async def head(self, key: InstanceKey) -> Head:
        """Find the current incarnation of a key; see EventLog."""
        try:
            return self._by_key[key].head
        except KeyError:
            raise InstanceNotFoundError(key.id) from None

    async def find(self, instance_id: str) -> "Sequence[Head]":
        """Look at every instance; see EventLog."""
        return sorted(stored.head for stored in self._by_key.values() if stored.ref.id == instance_id)

    async def read(self, ref: InstanceRef, after: int, limit: int = PAGE_EVENTS) -> Page:
        """Read a page of one instance; see EventLog."""
        stored = self._find(ref)
        found = _fitting(stored.events[after : after + limit])
        return Page(
            b"".join(found),
            range(after + 1, after + len(found) + 1),
            at_end=after + len(found) >= len(stored.events),
            state=stored.summary.state,
        )

    async def read_all(
        self,
        after: int,
        limit: int = PAGE_EVENTS,
        *,
        tenant: str | None = None,
        labels: Sequence[tuple[str, str]] = (),
    ) -> GlobalPage:
        """Read a page of all instances, looking at `limit` positions; see EventLog."""
        start = bisect_right(self._positions, after)
        events: list[tuple[int, bytes]] = []
        deletions: list[Deletion] = []
        scanned, size = start, 0
        for position, (stored, row) in zip(
            self._positions[start : start + limit], self._rows[start : start + limit], strict=True
        ):
            if row is not None and deletions:
                break  # events come before deletions in a page
            if size >= PAGE_BYTES:
                break
            scanned += 1
            if tenant not in (None, stored.ref.key.tenant) or not _has(stored.first, labels):
                continue
            if row is None:
                deletions.append(Deletion(stored.ref, position))
            else:
                events.append((position, row))
                size += len(row)
        page = Page(
            b"".join(row for _, row in events),
            [position for position, _ in events],
            at_end=scanned == len(self._positions),
        )
        return GlobalPage(page, deletions, self._positions[scanned - 1] if scanned > start else after)

    async def last_position(self) -> int:
        """Give the last position; see EventLog."""
        return self._position

    async def list(self, query: Query) -> ListPage:
        """Look at every instance; see EventLog."""
        found = [
            Row(stored.head, stored.summary.view)
            for stored in reversed(self._by_incarnation.values())
            if query.tenant in (None, stored.ref.key.tenant)
            and (not query.before or stored.ref.incarnation < query.before)
            and (not query.states or stored.summary.state in query.states)
            and _has(stored.first, query.labels)
            and stored.ref.id.startswith(query.id_prefix)
        ]
        rows = found[: query.limit]
        return ListPage(rows, rows[-1].head.ref.incarnation if len(rows) < len(found) else 0)

    async def unfinished(self) -> "Sequence[Head]":
        """Look at every instance; see EventLog."""
        return [
            stored.head for stored in self._by_incarnation.values() if stored.summary.state not in TERMINAL
        ]

    async def count_by_state(self) -> Mapping[State, int]:
        """Count instances by state; see EventLog."""
        return Counter(stored.head.state for stored in self._by_key.values())

    def size_bytes(self) -> int:
        """Return the size of the events; see EventLog."""
        return sum(len(row) for _, row in self._rows if row)

    @property
    def is_writable(self) -> bool:
        """Always; see EventLog."""
        return True

    async def finished_before(self, time_s: float, limit: int) -> "Sequence[InstanceRef]":
        """Look at every instance; see EventLog."""
        ended = [stored for stored in self._by_incarnation.values() if 0 < stored.summary.end_time_s < time_s]
        ended.sort(key=lambda stored: stored.summary.end_time_s)
        return [stored.ref for stored in ended[:limit]]

    async def aclose(self) -> None:
        """Write what is queued; see EventLog."""
        self._closed = True
        self._drain()


def _created_of(batch: Sequence[Creation], outcomes: Sequence[Created | Duplicate]) -> Sequence[Creation]:
    return [
        creation for creation, outcome in zip(batch, outcomes, strict=True) if isinstance(outcome, Created)
    ]


def _fitting(rows: Sequence[bytes]) -> Sequence[bytes]:
    """Return as many rows as a page of no more than its limit of bytes before the last begins with."""
    before = accumulate((len(row) for row in rows), initial=0)
    return [row for row, size in zip(rows, before, strict=False) if size < PAGE_BYTES]


def _has(instance: Instance, labels: Sequence[tuple[str, str]]) -> bool:
    return all(instance.labels.get(name) == value for name, value in labels)
