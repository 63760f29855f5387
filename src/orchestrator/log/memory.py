"""An event log in memory, for tests and for trying things out: the promises of the log, less durability."""

import asyncio
from collections.abc import Sequence

from orchestrator.core.state import TERMINAL, Instance, State
from orchestrator.errors import InstanceNotFoundError
from orchestrator.log.base import PAGE_EVENTS, Entry, Page, Wakeups, framed
from orchestrator.log.conflict import conflict
from orchestrator.v1 import instance_pb2 as pb


class MemoryEventLog:
    """Keeps everything in lists; an entry is "durable" as soon as it is appended."""

    def __init__(self) -> None:
        self.wakeups = Wakeups()
        self._all: list[tuple[str, bytes]] = []
        self._events: dict[str, list[bytes]] = {}
        self._instances: dict[str, Instance] = {}
        self._requests: dict[str, str] = {}

    def append(self, entry: Entry) -> "asyncio.Future[None]":
        """Append at once."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        instance = entry.instance
        if entry.events[0].sequence == 1:
            taken = self._requests.get(instance.request_id, instance.id)
            if refusal := conflict(instance, self._instances.get(taken)):
                done.set_exception(refusal)
                return done
            if instance.request_id:
                self._requests[instance.request_id] = instance.id
        rows = [framed(event) for event in entry.events]
        self._events.setdefault(instance.id, []).extend(rows)
        self._all.extend((instance.id, row) for row in rows)
        self._instances[instance.id] = instance
        done.set_result(None)
        self.wakeups.wake((instance.id,))
        return done

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
        return _page(self._events[instance_id], after, limit, state)

    async def read_all(
        self, after: int, limit: int = PAGE_EVENTS, *, labels: Sequence[tuple[str, str]] = ()
    ) -> Page:
        """Read a page of all instances."""
        rows = [
            (position, row)
            for position, (instance_id, row) in enumerate(self._all, 1)
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
        """Count all events."""
        return len(self._all)

    async def find(
        self,
        *,
        states: Sequence[State] = (),
        labels: Sequence[tuple[str, str]] = (),
        before: int = 0,
        limit: int,
    ) -> Sequence[tuple[int, str]]:
        """Look at every instance."""
        found = [
            (key, instance.id)
            for key, instance in enumerate(self._instances.values(), 1)
            if (not before or key < before)
            and (not states or instance.state in states)
            and _has(instance, labels)
        ]
        return found[::-1][:limit]

    async def unfinished(self) -> Sequence[str]:
        """Look at every instance."""
        return [instance.id for instance in self._instances.values() if instance.state not in TERMINAL]

    async def aclose(self) -> None:
        """Nothing is open."""


def _has(instance: Instance, labels: Sequence[tuple[str, str]]) -> bool:
    return all(instance.labels.get(name) == value for name, value in labels)


def _page(rows: Sequence[bytes], after: int, limit: int, state: State) -> Page:
    found = rows[after : after + limit]
    places = range(after + 1, after + len(found) + 1)
    return Page(b"".join(found), places, at_end=after + limit >= len(rows), state=state)
