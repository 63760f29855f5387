"""One of several that write to a log."""

import asyncio
from collections.abc import Sequence

from orchestrator.core.identity import InstanceKey
from orchestrator.core.state import evolve
from orchestrator.core.summary import summarize
from orchestrator.log.base import Append, EventLog
from orchestrator.log.states import Loaded, StateStore
from orchestrator.v1.event_pb2 import Event, PlanningFailed, PlanningStarted


class Writer:
    """One of several that write to a log: with states of its own, and with appends on their way."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.states = StateStore(log)
        self.seen: Loaded
        self.queued: asyncio.Future[None] | None = None

    async def look(self, instance_id: str, tenant: str = "") -> "Writer":
        """Read the instance as it is recorded, and go on from there."""
        self.seen = await self.states.load(InstanceKey(tenant, instance_id))
        self.queued = None
        return self

    def plan(self, *, epoch: int | None = None, **others: bool) -> "asyncio.Future[None]":
        """Append an attempt at planning that goes on from what was seen and queued."""
        return self.append(*attempt(self.seen.instance.planning.attempt + 1), epoch=epoch, **others)

    def append(self, *new: Event, epoch: int | None = None, **others: bool) -> "asyncio.Future[None]":
        ref, instance = self.seen
        expected = instance.last_sequence
        for event in new:
            event.instance_id, event.sequence = ref.id, instance.last_sequence + 1
            event.event_time.FromSeconds(1_700_000_000 + event.sequence)
            instance = evolve(instance, event)
        self.seen = Loaded(ref, instance)
        self.queued = self.log.append(
            Append(ref, expected, new, summarize(instance), epoch, previous=self.queued, **others)
        )
        return self.queued


def attempt(number: int) -> Sequence[Event]:
    failed = PlanningFailed(attempt=number)
    failed.retry_time.seconds = 1
    return Event(planning_started=PlanningStarted(attempt=number)), Event(planning_failed=failed)
