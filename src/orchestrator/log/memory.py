"""An event log in memory, for tests and for trying things out: the promises of the log, less durability."""

import asyncio
from collections.abc import Sequence

from orchestrator.core.instance import TERMINAL, Instance, State
from orchestrator.core.lifecycle import forbidden
from orchestrator.errors import InstanceNotFoundError
from orchestrator.log.base import PAGE_EVENTS, DuplicateRequest, Entry, Page, Wakeups, framed
from orchestrator.log.conflict import conflict
from orchestrator.v1 import instance_pb2 as pb


class MemoryEventLog:
    """Keeps everything in lists; an entry is "durable" as soon as it is appended."""

    def __init__(self) -> None:
        self.wakeups = Wakeups()
        self._all: dict[int, tuple[str, bytes]] = {}
        self._position = 0
        self._events: dict[str, list[bytes]] = {}
        self._instances: dict[str, Instance] = {}
        self._keys: dict[str, int] = {}
        self._key = 0
        self._requests: dict[str, str] = {}

    def append(self, entry: Entry) -> "asyncio.Future[None]":
        """Append at once."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if refusal := self._refusal(entry):
            done.set_exception(refusal)
            return done
        instance = entry.instance
        if entry.events[0].sequence == 1:
            self._key += 1
            self._keys[instance.id] = self._key
            if instance.request_id:
                self._requests[instance.request_id] = instance.id
        rows = [framed(event) for event in entry.events]
        self._events.setdefault(instance.id, []).extend(rows)
        for row in rows:
            self._position += 1
            self._all[self._position] = (instance.id, row)
        self._instances[instance.id] = instance
        done.set_result(None)
        self.wakeups.wake((instance.id,))
        return done

    def _refusal(self, entry: Entry) -> Exception | None:
        instance = entry.instance
        if entry.events[0].sequence > 1:
            return None if instance.id in self._instances else InstanceNotFoundError(instance.id)
        taken = self._requests.get(instance.request_id, instance.id)
        return conflict(instance, self._instances.get(taken))

    def append_atomic(self, entries: Sequence[Entry]) -> "Sequence[asyncio.Future[None]]":
        """Append all at once, or take back what was appended."""
        futures = [self.append(entry) for entry in entries]
        errors = [future.exception() for future in futures]
        fault = next((error for error in errors if error and not isinstance(error, DuplicateRequest)), None)
        if fault is None:
            return futures
        refused: list[asyncio.Future[None]] = []
        for entry, error in zip(entries, errors, strict=True):
            if error is None:
                self._remove(entry.instance.id)
            refused.append(asyncio.get_running_loop().create_future())
            refused[-1].set_exception(fault)
            refused[-1].exception()  # as with the others: whoever does not wait does not want to know
        return refused

    async def check_new(self, instance: Instance) -> None:
        """Look for what has its id or request id."""
        taken = self._requests.get(instance.request_id, instance.id)
        if refusal := conflict(instance, self._instances.get(taken)):
            raise refusal

    async def delete(self, instance_id: str) -> None:
        """Remove a finished instance."""
        state = (await self.load(instance_id)).state
        if state not in TERMINAL:
            raise forbidden(instance_id, state, "delete")
        self._remove(instance_id)
        self.wakeups.wake((instance_id,))

    def _remove(self, instance_id: str) -> None:
        instance = self._instances.pop(instance_id)
        self._requests.pop(instance.request_id, None)
        del self._events[instance_id], self._keys[instance_id]
        self._all = {place: row for place, row in self._all.items() if row[0] != instance_id}

    def check_writable(self) -> None:
        """Memory always is."""

    async def load(self, instance_id: str) -> Instance:
        """Give the instance as it was handed in."""
        try:
            return self._instances[instance_id]
        except KeyError:
            raise InstanceNotFoundError(instance_id) from None

    async def read(self, instance_id: str, after: int, limit: int = PAGE_EVENTS) -> Page:
        """Read a page of one instance."""
        state = (await self.load(instance_id)).state
        rows = self._events[instance_id]
        found = rows[after : after + limit]
        return Page(
            b"".join(found),
            range(after + 1, after + len(found) + 1),
            at_end=after + limit >= len(rows),
            state=state,
            key=self._keys[instance_id],
        )

    async def read_all(
        self, after: int, limit: int = PAGE_EVENTS, *, labels: Sequence[tuple[str, str]] = ()
    ) -> Page:
        """Read a page of all instances."""
        rows = [
            (position, row)
            for position, (instance_id, row) in self._all.items()
            if position > after and _has(self._instances[instance_id], labels)
        ]
        shown = rows[:limit]
        data = b"".join(row for _, row in shown)
        places = [position for position, _ in shown]
        return Page(data, places, at_end=len(shown) == len(rows), state=pb.STATE_UNSPECIFIED)

    async def last_sequence(self, instance_id: str) -> int:
        """Count the instance's events."""
        return (await self.load(instance_id)).last_sequence

    async def last_position(self) -> int:
        """Give the last position."""
        return self._position

    async def find(
        self,
        *,
        states: Sequence[State] = (),
        labels: Sequence[tuple[str, str]] = (),
        id_prefix: str = "",
        before: int = 0,
        limit: int,
    ) -> Sequence[tuple[int, str]]:
        """Look at every instance."""
        found = [
            (key, instance.id)
            for instance in self._instances.values()
            for key in (self._keys[instance.id],)
            if (not before or key < before)
            and (not states or instance.state in states)
            and _has(instance, labels)
            and instance.id.startswith(id_prefix)
        ]
        return found[::-1][:limit]

    async def unfinished(self) -> Sequence[str]:
        """Look at every instance."""
        return [instance.id for instance in self._instances.values() if instance.state not in TERMINAL]

    async def finished_before(self, time_s: float, limit: int) -> Sequence[str]:
        """Look at every instance."""
        ended = sorted(
            (instance.end_time_s, instance.id)
            for instance in self._instances.values()
            if 0 < instance.end_time_s < time_s
        )
        return [instance_id for _, instance_id in ended[:limit]]

    async def aclose(self) -> None:
        """Nothing is open."""


def _has(instance: Instance, labels: Sequence[tuple[str, str]]) -> bool:
    return all(instance.labels.get(name) == value for name, value in labels)
