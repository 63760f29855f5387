"""Instances in a log by their id alone: tests have one tenant, and look an instance up each time."""

from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.instance import Instance
from orchestrator.engine.base import Engine
from orchestrator.engine.steering import Action
from orchestrator.log import subscription
from orchestrator.log.base import PAGE_EVENTS, EventLog, Page, Query
from orchestrator.log.states import StateStore


def key(instance_id: str) -> InstanceKey:
    return InstanceKey("", instance_id)


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
    """Newest first."""
    return [row.head.ref.id for row in (await log.list(Query(limit=1000))).rows]


async def delete(log: EventLog, instance_id: str) -> None:
    await log.delete(await ref(log, instance_id))
