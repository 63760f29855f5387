"""Access instances in a log by id alone: tests have one tenant, and look an instance up each time."""

from collections.abc import Sequence
from pathlib import Path

from support.histories import History

from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.instance import Instance
from orchestrator.core.summary import summarize
from orchestrator.engine.base import Engine
from orchestrator.engine.steering import Action
from orchestrator.errors import InstanceNotFoundError
from orchestrator.log import subscription
from orchestrator.log.base import (
    PAGE_EVENTS,
    Append,
    Created,
    Creation,
    EventLog,
    GlobalPage,
    Page,
    Query,
)
from orchestrator.log.memory import MemoryEventLog
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.states import StateStore
from orchestrator.v1.event_pb2 import Event


def key(instance_id: str) -> InstanceKey:
    return InstanceKey("", instance_id)


async def open_log(kind: str, folder: Path) -> EventLog:
    return MemoryEventLog() if kind == "memory" else await SqliteEventLog.open(folder / "log.db")


def creation(history: History, tenant: str = "") -> Creation:
    return Creation(InstanceKey(tenant, history.instance.id), history.events, history.instance)


def append(history: History, ref: InstanceRef, since: int) -> Append:
    """Build the append of the events after a sequence."""
    return Append(ref, since, history.events[since:], summarize(history.instance))


async def create(log: EventLog, history: History, tenant: str = "") -> InstanceRef:
    (outcome,) = await log.create([creation(history, tenant)])
    assert isinstance(outcome, Created)
    return outcome.ref


async def record(log: EventLog, history: History) -> InstanceRef:
    """Create the instance, or append the events since its last one."""
    try:
        head = await log.head(key(history.instance.id))
    except InstanceNotFoundError:
        return await create(log, history)
    await log.append(append(history, head.ref, head.last_sequence))
    return head.ref


async def events(log: EventLog, ref: InstanceRef, page: int = 3) -> Sequence[Event]:
    """Read all events of an instance, in small pages."""
    found: list[Event] = []
    while True:
        part = await log.read(ref, len(found), page)
        assert [event.sequence for event in part.events()] == list(part.ordinals)
        found += part.events()
        if part.at_end:
            return found


async def global_pages(
    log: EventLog,
    after: int = 0,
    limit: int = PAGE_EVENTS,
    *,
    tenant: str | None = None,
    labels: Sequence[tuple[str, str]] = (),
) -> Sequence[GlobalPage]:
    """Read pages of all instances until the end."""
    pages: list[GlobalPage] = []
    while not pages or not pages[-1].events.at_end:
        pages.append(await log.read_all(after, limit, tenant=tenant, labels=labels))
        assert pages[-1].cursor > after or pages[-1].events.at_end
        after = pages[-1].cursor
    return pages


async def ref(log: EventLog, instance_id: str) -> InstanceRef:
    return (await log.head(key(instance_id))).ref


async def load(log: EventLog, instance_id: str) -> Instance:
    return (await StateStore(log).load(key(instance_id))).instance


async def read(log: EventLog, instance_id: str, after: int = 0, limit: int = PAGE_EVENTS) -> Page:
    return await log.read(await ref(log, instance_id), after, limit)


async def ended(log: EventLog, instance_id: str, timeout_s: float) -> Instance:
    return (await subscription.wait_for_end(log, StateStore(log), key(instance_id), timeout_s)).instance


async def steer(engine: Engine, instance_id: str, action: Action) -> Instance:
    return (await engine.steer(key(instance_id), action)).instance


async def ids(log: EventLog) -> list[str]:
    """List all ids, newest first."""
    return [row.head.ref.id for row in (await log.list(Query(limit=1000))).rows]


async def delete(log: EventLog, instance_id: str) -> None:
    await log.delete(await ref(log, instance_id))
