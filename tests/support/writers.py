"""One of several writers to a log."""

import asyncio
from collections.abc import Sequence

from orchestrator.core.identity import InstanceKey
from orchestrator.core.state import evolve
from orchestrator.core.summary import summarize
from orchestrator.log.base import Append, EventLog
from orchestrator.log.states import Loaded, StateStore
from orchestrator.v1.event_pb2 import Event, PlanningFailed, PlanningStarted


class Writer:
    """One of several writers to a log: with a state store and queued appends of its own."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.states = StateStore(log)
        self.loaded: Loaded
        self.queued: asyncio.Future[None] | None = None

    async def load(self, instance_id: str, tenant: str = "") -> "Writer":
        """Load the instance as it is recorded, and continue from there."""
        self.loaded = await self.states.load(InstanceKey(tenant, instance_id))
        self.queued = None
        return self

    def append_planning(self, *, epoch: int | None = None, **others: bool) -> "asyncio.Future[None]":
        """Append a planning attempt that follows the loaded state and the queued appends."""
        return self.append(
            *planning_attempt(self.loaded.instance.planning.attempt + 1), epoch=epoch, **others
        )

    def append(self, *new: Event, epoch: int | None = None, **others: bool) -> "asyncio.Future[None]":
        ref, instance = self.loaded
        expected = instance.last_sequence
        for event in new:
            event.instance_id, event.sequence = ref.id, instance.last_sequence + 1
            event.event_time.FromSeconds(1_700_000_000 + event.sequence)
            instance = evolve(instance, event)
        self.loaded = Loaded(ref, instance)
        self.queued = self.log.append(
            Append(ref, expected, new, summarize(instance), epoch, previous=self.queued, **others)
        )
        return self.queued


def planning_attempt(number: int) -> Sequence[Event]:
    failed = PlanningFailed(attempt=number)
    failed.retry_time.seconds = 1
    return Event(planning_started=PlanningStarted(attempt=number)), Event(planning_failed=failed)
